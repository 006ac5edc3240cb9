//! A Redis server of the few commands that publishing needs, which can be made to misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use kvcache_wire::RedisReply;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it does with a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Mood {
    #[default]
    Serves,
    /// Reads and never answers.
    Silent,
    /// Speaks another protocol.
    Http,
    /// Hangs up in the middle of its reply.
    HangsUp,
    /// Refuses to run transactions.
    Full,
}

#[derive(Default)]
pub(super) struct State {
    /// Each value with the number of the write that it came with.
    values: BTreeMap<String, (String, u64)>,
    writes: u64,
    pub(super) mood: Mood,
    pub(super) password: Option<String>,
    /// What another client writes just before the next transactions run: a key and a value each.
    pub(super) before_exec: VecDeque<(String, String)>,
}

impl State {
    fn set(&mut self, key: &str, value: &str) {
        self.writes += 1;
        self.values.insert(key.to_owned(), (value.to_owned(), self.writes));
    }

    fn write_of(&self, key: &str) -> Option<u64> {
        self.values.get(key).map(|(_, write)| *write)
    }

    /// Runs a command that needs no transaction.
    fn run(&mut self, command: &[String]) -> String {
        let parts: Vec<&str> = command.iter().map(String::as_str).collect();
        match parts[..] {
            ["GET", key] => match self.values.get(key) {
                Some((value, _)) if value == A_LIST => WRONG_TYPE.to_owned(),
                Some((value, _)) => format!("${}\r\n{value}\r\n", value.len()),
                None => "$-1\r\n".to_owned(),
            },
            ["SET", key, value] => {
                self.set(key, value);
                "+OK\r\n".to_owned()
            }
            ["LPUSH", key, _] => {
                self.set(key, A_LIST);
                ":1\r\n".to_owned()
            }
            ["DEL", key] => format!(":{}\r\n", u8::from(self.values.remove(key).is_some())),
            ["TTL", _] => ":-1\r\n".to_owned(),
            _ => format!("-ERR unknown command {command:?}\r\n"),
        }
    }
}

const A_LIST: &str = "\u{0}a list";
const WRONG_TYPE: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

pub(super) struct FakeRedis {
    state: Arc<Mutex<State>>,
    pub(super) port: u16,
}

impl FakeRedis {
    /// Must be called in a runtime, and serves as long as that runs.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::<Mutex<State>>::default();
        let served = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        Self { state, port }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut bytes = Vec::new();
    let mut session = Session { known: false, watched: Vec::new(), queued: None };
    loop {
        let command = loop {
            match RedisReply::read(&bytes, 1 << 20).ok()? {
                Some((RedisReply::Array(Some(parts)), length)) => {
                    bytes.drain(..length);
                    break parts;
                }
                Some(_) => return None,
                None => (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?,
            }
        };
        let command: Option<Vec<String>> = command
            .into_iter()
            .map(|part| match part {
                RedisReply::Bulk(Some(bytes)) => String::from_utf8(bytes).ok(),
                _ => None,
            })
            .collect();
        let (reply, mood) = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            (session.answer(&mut state, &command?), state.mood)
        };
        match mood {
            Mood::Serves | Mood::Full => stream.write_all(reply.as_bytes()).await.ok()?,
            Mood::Silent => {}
            Mood::Http => stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok()?,
            Mood::HangsUp => {
                stream.write_all(&reply.as_bytes()[..reply.len() / 2]).await.ok()?;
                return None;
            }
        }
    }
}

/// What a connection has said so far.
struct Session {
    known: bool,
    watched: Vec<(String, Option<u64>)>,
    queued: Option<Vec<Vec<String>>>,
}

impl Session {
    fn answer(&mut self, state: &mut State, command: &[String]) -> String {
        let parts: Vec<&str> = command.iter().map(String::as_str).collect();
        if let ["AUTH", password] = parts[..] {
            self.known = state.password.as_deref() == Some(password);
            let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
            return if self.known { "+OK\r\n" } else { wrong }.to_owned();
        }
        if state.password.is_some() && !self.known {
            return "-NOAUTH Authentication required.\r\n".to_owned();
        }
        match parts[..] {
            ["WATCH", key] => self.watched.push((key.to_owned(), state.write_of(key))),
            ["MULTI"] => self.queued = Some(Vec::new()),
            ["EXEC"] => {
                if let Some((key, value)) = state.before_exec.pop_front() {
                    state.set(&key, &value);
                }
                let queued = self.queued.take().unwrap_or_default();
                let watched = std::mem::take(&mut self.watched);
                if watched.into_iter().any(|(key, write)| state.write_of(&key) != write) {
                    return "*-1\r\n".to_owned();
                }
                let full = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
                let run = |command: &Vec<String>| match state.mood {
                    Mood::Full => full.to_owned(),
                    _ => state.run(command),
                };
                let replies: Vec<String> = queued.iter().map(run).collect();
                return format!("*{}\r\n{}", replies.len(), replies.concat());
            }
            _ => match &mut self.queued {
                Some(queued) => {
                    queued.push(command.to_vec());
                    return "+QUEUED\r\n".to_owned();
                }
                None => return state.run(command),
            },
        }
        "+OK\r\n".to_owned()
    }
}
