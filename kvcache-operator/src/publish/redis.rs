//! The ring under a key of Redis, where AIBrix's engines look for it.
//!
//! A key is read and written in one transaction (`WATCH`, `GET`, `MULTI`, `SET`, `EXEC`): of two publishers one loses,
//! and sees what the other has written. A ring is not written over a later version of itself, nor over a ring of another
//! cache.

use std::fmt;
use std::io;
use std::time::Duration;

use kvcache_core::ring::{RingDocument, ServerAddress};
use kvcache_wire::{RedisReply, redis_command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::RingOwner;
use super::fence::Stored;

/// AIBrix's key, in database 0.
pub const KEY: &str = "kvcache_nodes";

/// A key of a Redis server. Its `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RingKey {
    /// Where Redis listens.
    pub server: ServerAddress,
    /// The password of its default user.
    pub password: Option<String>,
    /// [`KEY`], or `kvcache_nodes/NAMESPACE/NAME` where caches have keys of their own.
    pub key: String,
}

impl fmt::Debug for RingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis://{}/0/{}", self.server, self.key)
    }
}

/// How long Redis has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For everything, the connection included.
    pub whole: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), whole: Duration::from_secs(5) }
    }
}

/// What became of a ring that was to be published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Published {
    /// It is there now.
    Written,
    /// It was there already.
    Unchanged,
    /// A ring of this cache or of nobody is there, of this version, which is no lower. Publish one of a higher version.
    Superseded {
        /// Its version.
        version: u64,
    },
    /// The key belongs to another cache.
    KeyInUse {
        /// That cache.
        owner: RingOwner,
    },
}

/// What became of a ring that was to be removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Removed {
    /// It is gone, or was not there.
    Gone,
    /// The key belongs to another cache, or to nobody that is known, and stays.
    NotOurs,
}

/// Why Redis could not be asked. Messages hold no password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// It cannot be reached, or hung up.
    #[error("redis at {server}: {source}; is it running and reachable from here?")]
    Io {
        /// Its host and port.
        server: ServerAddress,
        /// What the system says.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("redis at {server} did not answer within {} ms", after.as_millis())]
    TimedOut {
        /// Its host and port.
        server: ServerAddress,
        /// How long it had.
        after: Duration,
    },
    /// It answered with an error.
    #[error("redis at {server} refused {command}: {message}{}", remedy(message))]
    Refused {
        /// Its host and port.
        server: ServerAddress,
        /// The command.
        command: &'static str,
        /// The error, shortened.
        message: String,
    },
    /// What answered does not speak Redis's protocol.
    #[error("{server} does not answer like redis: {reason}; is the port right, and does it want TLS?")]
    NotRedis {
        /// Its host and port.
        server: ServerAddress,
        /// What came.
        reason: String,
    },
    /// Others wrote to the key all the time.
    #[error("redis at {server}: {key:?} was written by others {ATTEMPTS_MAX} times in a row")]
    Contended {
        /// Its host and port.
        server: ServerAddress,
        /// The key.
        key: String,
    },
}

impl RedisError {
    /// Whether it is the server's: whoever asks next, for whatever key, will most likely get the same.
    pub(super) fn is_of_server(&self) -> bool {
        match self {
            Self::Io { .. } | Self::TimedOut { .. } | Self::NotRedis { .. } => true,
            Self::Refused { .. } | Self::Contended { .. } => false,
        }
    }
}

fn remedy(message: &str) -> &'static str {
    match message.split(' ').next() {
        Some("NOAUTH") => "; name the Secret with the password in passwordSecretRef",
        Some("WRONGPASS" | "ERR") if message.contains("AUTH") => "; check the password in the Secret",
        Some("WRONGPASS") => "; check the password in the Secret",
        Some("WRONGTYPE") => {
            "; the key holds something that is no ring: remove it, or set spec.server.ring.perClusterKey"
        }
        Some("NOPERM") => "; the user may need the commands WATCH, GET, MULTI, SET, EXEC and DEL on the key",
        Some("READONLY") => "; this is a replica: name the primary",
        Some("LOADING") => "; it will answer when it has read its data",
        Some("OOM") => "; it is full: raise maxmemory",
        _ => "",
    }
}

/// Publishes the ring of `document`, which is `owner`'s, unless what is there forbids it.
///
/// Costs a connection and three round trips where it is written, two where it is not. Ends within `patience`, but for
/// resolving the server's name, which is given up and not ended.
///
/// # Errors
///
/// If Redis cannot be reached or refuses. After an error it may or may not have been written; asking again is safe.
pub async fn publish(
    key: &RingKey,
    document: &RingDocument,
    owner: &RingOwner,
    patience: Patience,
) -> Result<Published, RedisError> {
    let text = owner.text_of(document);
    let ours = document.version.unwrap_or(0);
    let writing = async {
        let mut redis = Connection::open(key, patience).await?;
        for _ in 0..ATTEMPTS_MAX {
            let stored = redis.watch().await?;
            if stored.as_deref() == Some(text.as_bytes()) {
                return Ok(Published::Unchanged);
            }
            match Stored::of(stored.as_deref(), owner) {
                Stored::Others { owner } => return Ok(Published::KeyInUse { owner }),
                Stored::Ours { version } | Stored::Nobodys { version } if version >= ours => {
                    return Ok(Published::Superseded { version });
                }
                Stored::Ours { .. } | Stored::Nobodys { .. } | Stored::Nothing => {}
            }
            if redis.transact("SET", &[&key.key, &text]).await? {
                return Ok(Published::Written);
            }
        }
        Err(redis.contended())
    };
    within(key, patience, writing).await
}

/// Removes the ring if it is `owner`'s. For a cache that is deleted: a failure must not keep it from going.
///
/// # Errors
///
/// Those of [`publish`].
pub async fn remove(key: &RingKey, owner: &RingOwner, patience: Patience) -> Result<Removed, RedisError> {
    let removing = async {
        let mut redis = Connection::open(key, patience).await?;
        for _ in 0..ATTEMPTS_MAX {
            let stored = redis.watch().await?;
            match Stored::of(stored.as_deref(), owner) {
                Stored::Ours { .. } => {}
                Stored::Nothing if stored.is_none() => return Ok(Removed::Gone),
                Stored::Nothing | Stored::Nobodys { .. } | Stored::Others { .. } => {
                    return Ok(Removed::NotOurs);
                }
            }
            if redis.transact("DEL", &[&key.key]).await? {
                return Ok(Removed::Gone);
            }
        }
        Err(redis.contended())
    };
    within(key, patience, removing).await
}

/// Says one command, as tests do to see what is there.
#[cfg(test)]
pub(super) async fn ask(
    key: &RingKey,
    name: &'static str,
    arguments: &[&str],
    patience: Patience,
) -> Result<RedisReply, RedisError> {
    let asking = async { Connection::open(key, patience).await?.ask(name, arguments).await };
    within(key, patience, asking).await
}

/// How often a transaction is begun that another writer makes void. Each time another ring is there to look at, so that
/// the second attempt says who was faster; more are needed only where somebody else writes all the time.
const ATTEMPTS_MAX: usize = 4;

async fn within<T>(
    key: &RingKey,
    patience: Patience,
    work: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    let late = |_| RedisError::TimedOut { server: key.server.clone(), after: patience.whole };
    timeout(patience.whole, work).await.map_err(late)?
}

/// A connection that has said its password. One command at a time is on its way.
struct Connection<'a> {
    key: &'a RingKey,
    stream: TcpStream,
}

impl<'a> Connection<'a> {
    async fn open(key: &'a RingKey, patience: Patience) -> Result<Self, RedisError> {
        let connecting = TcpStream::connect((key.server.host(), key.server.port()));
        let stream = match timeout(patience.connect, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(RedisError::Io { server: key.server.clone(), source }),
            Err(_) => {
                return Err(RedisError::TimedOut { server: key.server.clone(), after: patience.connect });
            }
        };
        let mut redis = Self { key, stream };
        if let Some(password) = &key.password {
            redis.ask("AUTH", &[password]).await?;
        }
        Ok(redis)
    }

    /// What is under the key, which is watched from now on.
    async fn watch(&mut self) -> Result<Option<Vec<u8>>, RedisError> {
        self.ask("WATCH", &[&self.key.key]).await?;
        match self.ask("GET", &[&self.key.key]).await? {
            RedisReply::Bulk(text) => Ok(text),
            other => Err(self.not_redis(format!("{other:?} in reply to GET"))),
        }
    }

    /// Runs the one command if nobody has written to the watched key since; whether it did.
    async fn transact(&mut self, name: &'static str, arguments: &[&str]) -> Result<bool, RedisError> {
        self.ask("MULTI", &[]).await?;
        self.ask(name, arguments).await?;
        match self.ask("EXEC", &[]).await? {
            RedisReply::Array(None) => Ok(false),
            RedisReply::Array(Some(replies)) => match replies.into_iter().next() {
                Some(RedisReply::Error(message)) => Err(self.refused(name, message)),
                Some(_) => Ok(true),
                None => Err(self.not_redis("nothing in reply to EXEC".to_owned())),
            },
            other => Err(self.not_redis(format!("{other:?} in reply to EXEC"))),
        }
    }

    async fn ask(&mut self, name: &'static str, arguments: &[&str]) -> Result<RedisReply, RedisError> {
        let parts: Vec<&str> = std::iter::once(name).chain(arguments.iter().copied()).collect();
        self.stream.write_all(&redis_command(&parts)).await.map_err(|error| self.io(error))?;
        let mut bytes = Vec::new();
        loop {
            let count = self.stream.read_buf(&mut bytes).await.map_err(|error| self.io(error))?;
            if count == 0 {
                return Err(self.io(io::ErrorKind::UnexpectedEof.into()));
            }
            match RedisReply::read(&bytes, RingDocument::TEXT_BYTES_MAX) {
                Ok(None) => {}
                Ok(Some((RedisReply::Error(message), _))) => return Err(self.refused(name, message)),
                Ok(Some((reply, length))) if length == bytes.len() => return Ok(reply),
                Ok(Some(_)) => return Err(self.not_redis("more than one reply".to_owned())),
                Err(error) => return Err(self.not_redis(error.to_string())),
            }
        }
    }

    fn io(&self, source: io::Error) -> RedisError {
        RedisError::Io { server: self.key.server.clone(), source }
    }

    fn refused(&self, command: &'static str, mut message: String) -> RedisError {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        RedisError::Refused { server: self.key.server.clone(), command, message }
    }

    fn not_redis(&self, reason: String) -> RedisError {
        RedisError::NotRedis { server: self.key.server.clone(), reason }
    }

    fn contended(&self) -> RedisError {
        RedisError::Contended { server: self.key.server.clone(), key: self.key.key.clone() }
    }
}

/// What is kept of an error's text.
const MESSAGE_BYTES_MAX: usize = 200;
