//! A Redis with the few commands that a publisher uses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The server. Ends with the runtime.
pub struct Redis {
    pub address: String,
    keys: Arc<Mutex<BTreeMap<String, String>>>,
    connections: Arc<AtomicUsize>,
    removals: Arc<AtomicUsize>,
    latency: Arc<Mutex<Duration>>,
}

impl Redis {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub async fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("the loopback interface");
        let address = listener.local_addr().expect("bound").to_string();
        let keys: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
        let shared = Arc::clone(&keys);
        let connections: Arc<AtomicUsize> = Arc::default();
        let count = Arc::clone(&connections);
        let removals: Arc<AtomicUsize> = Arc::default();
        let removed = Arc::clone(&removals);
        let latency: Arc<Mutex<Duration>> = Arc::default();
        let delay = Arc::clone(&latency);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, Arc::clone(&shared), Arc::clone(&removed), Arc::clone(&delay)));
            }
        });
        Self { address, keys, connections, removals, latency }
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.keys.lock().expect("no panic").get(key).cloned()
    }

    pub fn set(&self, key: &str, value: &str) {
        self.keys.lock().expect("no panic").insert(key.to_owned(), value.to_owned());
    }

    /// How long every answer takes from now on.
    pub fn answer_after(&self, latency: Duration) {
        *self.latency.lock().expect("no panic") = latency;
    }

    /// How often it was asked since its start.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How often a key was removed since its start.
    pub fn removals(&self) -> usize {
        self.removals.load(Ordering::Relaxed)
    }

    /// What a restart without persistence leaves.
    pub fn forget(&self) {
        self.keys.lock().expect("no panic").clear();
    }
}

/// Answers one connection; no transaction ever fails here, since nobody writes meanwhile.
async fn serve(
    stream: TcpStream,
    keys: Arc<Mutex<BTreeMap<String, String>>>,
    removals: Arc<AtomicUsize>,
    latency: Arc<Mutex<Duration>>,
) {
    let mut stream = BufReader::new(stream);
    let mut queued: Option<Vec<Vec<String>>> = None;
    while let Some(command) = read(&mut stream).await {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        removals.fetch_add(usize::from(words.first() == Some(&"DEL")), Ordering::Relaxed);
        let answer = match words.as_slice() {
            ["MULTI"] => {
                queued = Some(Vec::new());
                "+OK\r\n".to_owned()
            }
            ["EXEC"] => {
                let commands = queued.take().unwrap_or_default();
                let answers: Vec<String> = commands.iter().map(|command| run(command, &keys)).collect();
                format!("*{}\r\n{}", answers.len(), answers.concat())
            }
            _ if queued.is_some() => {
                queued.as_mut().expect("just seen").push(command);
                "+QUEUED\r\n".to_owned()
            }
            _ => run(&command, &keys),
        };
        let latency = *latency.lock().expect("no panic");
        tokio::time::sleep(latency).await;
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn run(command: &[String], keys: &Mutex<BTreeMap<String, String>>) -> String {
    let mut keys = keys.lock().expect("no panic");
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["AUTH" | "WATCH" | "UNWATCH", ..] => "+OK\r\n".to_owned(),
        ["GET", key] => match keys.get(*key) {
            Some(value) => format!("${}\r\n{value}\r\n", value.len()),
            None => "$-1\r\n".to_owned(),
        },
        ["SET", key, value] => {
            keys.insert((*key).to_owned(), (*value).to_owned());
            "+OK\r\n".to_owned()
        }
        ["DEL", key] => format!(":{}\r\n", u8::from(keys.remove(*key).is_some())),
        other => format!("-ERR unknown command {:?}\r\n", other.first()),
    }
}

/// A command as an array of bulk strings; `None` at the end.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
    let count: usize = line.trim_end().strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let length: usize = line.trim_end().strip_prefix('$')?.parse().ok()?;
        let mut bytes = vec![0; length + 2];
        stream.read_exact(&mut bytes).await.ok()?;
        bytes.truncate(length);
        words.push(String::from_utf8(bytes).ok()?);
    }
    Some(words)
}
