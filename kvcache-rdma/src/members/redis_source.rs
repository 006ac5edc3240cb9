//! Members under a key of Redis, as AIBrix's watcher publishes them.

use std::fmt;
use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use kvcache_core::ring::RingDocument;
use kvcache_wire::{RedisReply, redis_command};

use super::percent::decoded;
use super::resp::{DeadlineStream, RespError, read_reply};
use super::{MemberList, MemberSource, Reading, RemoteUrlError, ServerAddress, SourceError};

/// A key of a Redis server. Its `Debug` and `Display` show no user and no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisKey {
    /// Where Redis listens.
    pub server: ServerAddress,
    /// The user; Redis's default one if there is only a password.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The number of the database.
    pub database: u32,
    /// The key.
    pub key: String,
}

const PORT: u16 = 6379;

impl RedisKey {
    /// What follows `redis://`.
    pub(super) fn parse(text: &str) -> Result<Self, RemoteUrlError> {
        let invalid = |reason: &str| RemoteUrlError::Redis { reason: reason.to_owned() };
        let plain = |text: &str, what| decoded(text).ok_or(RemoteUrlError::Percent { what });
        let (before, path) = text.split_once('/').ok_or_else(|| invalid("the key is missing"))?;
        let (login, server) =
            before.rsplit_once('@').map_or((None, before), |(login, server)| (Some(login), server));
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or(("", login))) {
            None => (None, None),
            Some((user, password)) => (
                Some(plain(user, "user")?).filter(|user| !user.is_empty()),
                Some(plain(password, "password")?),
            ),
        };
        let with_port =
            server.rsplit_once(':').is_some_and(|(host, _)| !host.starts_with('[') || host.ends_with(']'));
        let server = if with_port { server.to_owned() } else { format!("{server}:{PORT}") };
        let server = server.parse::<ServerAddress>().map_err(|error| invalid(&error.to_string()))?;
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (database, key) = match path.split_once('/') {
            Some((database, key)) if number(database) => {
                (database.parse().map_err(|_| invalid("the database's number is too large"))?, key)
            }
            _ => (0, path),
        };
        if key.is_empty() {
            return Err(invalid("the key is missing"));
        }
        Ok(Self { server, user, password, database, key: plain(key, "key")? })
    }
}

impl fmt::Display for RedisKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis://{}/{}/{}", self.server, self.database, self.key)
    }
}

impl fmt::Debug for RedisKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Asks Redis for a key over one connection, which is made again after a failure.
#[derive(Debug)]
pub struct RedisSource {
    key: RedisKey,
    timeout: Duration,
    connection: Option<DeadlineStream>,
    last: Option<Vec<u8>>,
}

impl RedisSource {
    /// The members under `key`. A reading, with the connection and the login it may need, ends after `timeout`; only
    /// resolving the host's name is left to the system's own patience.
    pub fn new(key: RedisKey, timeout: Duration) -> Self {
        Self { key, timeout, connection: None, last: None }
    }

    fn connect(&self, deadline: Instant) -> Result<DeadlineStream, SourceError> {
        let unreachable = |source| self.io_error(source);
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host's name has no address");
        for address in
            (self.key.server.host(), self.key.server.port()).to_socket_addrs().map_err(unreachable)?
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(unreachable(io::ErrorKind::TimedOut.into()));
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return self.log_in(DeadlineStream { stream, deadline }),
                Err(error) => failure = error,
            }
        }
        Err(unreachable(failure))
    }

    fn log_in(&self, mut to: DeadlineStream) -> Result<DeadlineStream, SourceError> {
        match (&self.key.user, &self.key.password) {
            (Some(user), Some(password)) => self.ask(&mut to, "AUTH", &[user, password]).map(drop)?,
            (None, Some(password)) => self.ask(&mut to, "AUTH", &[password]).map(drop)?,
            _ => {}
        }
        if self.key.database != 0 {
            self.ask(&mut to, "SELECT", &[&self.key.database.to_string()])?;
        }
        Ok(to)
    }

    fn ask(
        &self,
        connection: &mut DeadlineStream,
        name: &'static str,
        arguments: &[&str],
    ) -> Result<RedisReply, SourceError> {
        let parts: Vec<&str> = std::iter::once(name).chain(arguments.iter().copied()).collect();
        connection.write_all(&redis_command(&parts)).map_err(|error| self.io_error(error))?;
        let server = || self.key.server.to_string();
        match read_reply(connection, RingDocument::TEXT_BYTES_MAX) {
            Ok(RedisReply::Error(mut message)) => {
                message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
                Err(SourceError::RedisRefused { server: server(), command: name, message })
            }
            Ok(reply) => Ok(reply),
            Err(RespError::Io(error)) => Err(self.io_error(error)),
            Err(RespError::Malformed(reason)) => Err(SourceError::NotRedis { server: server(), reason }),
        }
    }

    fn text(&mut self) -> Result<Vec<u8>, SourceError> {
        let deadline = Instant::now() + self.timeout;
        // Taken out, so that whatever fails below leaves no connection behind with half a reply in it.
        if let Some(mut connection) = self.connection.take() {
            connection.deadline = deadline;
            match self.get(connection) {
                // Redis closes connections that are idle, and all of them when it restarts.
                Err(SourceError::Redis { source, .. }) if source.kind() != io::ErrorKind::TimedOut => {}
                outcome => return outcome,
            }
        }
        let connection = self.connect(deadline)?;
        self.get(connection)
    }

    fn get(&mut self, mut connection: DeadlineStream) -> Result<Vec<u8>, SourceError> {
        let server = self.key.server.to_string();
        match self.ask(&mut connection, "GET", &[&self.key.key])? {
            RedisReply::Bulk(text) => {
                self.connection = Some(connection);
                text.ok_or_else(|| SourceError::NoKey { server, key: self.key.key.clone() })
            }
            other => Err(SourceError::NotRedis { server, reason: format!("{other:?} in reply to GET") }),
        }
    }

    fn io_error(&self, source: io::Error) -> SourceError {
        SourceError::Redis { server: self.key.server.to_string(), source }
    }
}

impl MemberSource for RedisSource {
    fn read(&mut self) -> Result<Reading, SourceError> {
        let text = self.text()?;
        if self.last.as_ref() == Some(&text) {
            return Ok(Reading::Unchanged);
        }
        let origin = || format!("redis at {}, key {:?}", self.key.server, self.key.key);
        let list =
            MemberList::from_json(&text).map_err(|source| SourceError::Text { origin: origin(), source })?;
        self.last = Some(text);
        Ok(Reading::List(list))
    }
}

/// What is kept of an error's text.
const MESSAGE_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_urls() {
        let key = RedisKey::parse("kv:s%2Fcret@redis.svc:6380/3/kvcache_nodes/default/kv").unwrap();
        assert_eq!((key.user.as_deref(), key.password.as_deref()), (Some("kv"), Some("s/cret")));
        assert_eq!(key.to_string(), "redis://redis.svc:6380/3/kvcache_nodes/default/kv");
        assert_eq!(format!("{key:?}"), key.to_string());
        let key = RedisKey::parse(":only@[fd00::1]/kvcache_nodes").unwrap();
        assert_eq!((key.user, key.password.as_deref()), (None, Some("only")));
        assert_eq!(key.server.to_string(), "[fd00::1]:6379");
        assert_eq!(RedisKey::parse("word@h/k").unwrap().password.as_deref(), Some("word"));
        assert_eq!(RedisKey::parse("h:1/17").unwrap().key, "17");
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said() {
        for (text, part) in [
            ("host:6379", "the key is missing"),
            ("host:6379/", "the key is missing"),
            ("host:6379/3/", "the key is missing"),
            ("/kvcache_nodes", "the host is missing"),
            ("host:port/k", "the port must be a number"),
            ("h/99999999999/k", "the database's number is too large"),
            ("a%:b@h/k", "in the user, % must be followed"),
            ("a:%zz@h/k", "in the password, % must be followed"),
        ] {
            let error = RedisKey::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
