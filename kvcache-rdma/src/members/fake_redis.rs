//! A Redis server of a few commands, which can be made to misbehave.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

/// What the server does with a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Mood {
    #[default]
    Serves,
    /// Reads and never answers.
    Silent,
    /// Answers one byte of a long string after the other.
    Drips,
    /// Speaks another protocol.
    Http,
    /// Hangs up in the middle of a reply.
    HangsUp,
}

#[derive(Default)]
struct State {
    value: Option<Vec<u8>>,
    mood: Mood,
    password: Option<String>,
    /// The commands that came, in words.
    commands: Vec<String>,
    connections: Vec<TcpStream>,
    down: bool,
}

pub(super) struct FakeRedis {
    state: Arc<Mutex<State>>,
    port: u16,
    accepting: Option<JoinHandle<()>>,
}

impl FakeRedis {
    pub(super) fn start() -> Self {
        let mut redis = Self { state: Arc::default(), port: 0, accepting: None };
        redis.come_up();
        redis
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set(&self, value: impl AsRef<[u8]>) {
        self.state.lock().value = Some(value.as_ref().to_vec());
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.state.lock().mood = mood;
    }

    pub(super) fn set_password(&self, password: &str) {
        self.state.lock().password = Some(password.to_owned());
    }

    pub(super) fn commands(&self) -> Vec<String> {
        self.state.lock().commands.clone()
    }

    /// Closes all connections, as a server does that finds them idle.
    pub(super) fn hang_up(&self) {
        for connection in self.state.lock().connections.drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Listens, on the port that it had before.
    pub(super) fn come_up(&mut self) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).expect("a port on loopback");
        self.port = listener.local_addr().expect("it is bound").port();
        self.state.lock().down = false;
        let state = self.state.clone();
        self.accepting = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if state.lock().down {
                    return;
                }
                state.lock().connections.push(stream.try_clone().expect("a second handle"));
                let state = state.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        }));
    }

    /// Refuses connections and ends those it has.
    pub(super) fn go_down(&mut self) {
        self.state.lock().down = true;
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("it does not panic");
        }
        self.hang_up();
    }
}

impl Drop for FakeRedis {
    fn drop(&mut self) {
        self.go_down();
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::new(stream);
    let mut known = state.lock().password.is_none();
    while let Some(command) = read_command(&mut input) {
        let (reply, mood) = {
            let mut state = state.lock();
            state.commands.push(command.join(" "));
            let reply = match command[0].as_str() {
                "AUTH" => {
                    known = state.password.as_ref() == command.last();
                    let wrong = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
                    if known { b"+OK\r\n".to_vec() } else { wrong.to_vec() }
                }
                _ if !known => b"-NOAUTH Authentication required.\r\n".to_vec(),
                "SELECT" => b"+OK\r\n".to_vec(),
                "GET" => match &state.value {
                    Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
                    None => b"$-1\r\n".to_vec(),
                },
                other => format!("-ERR unknown command '{other}'\r\n").into_bytes(),
            };
            (reply, state.mood)
        };
        match mood {
            Mood::Serves => {
                if out.write_all(&reply).is_err() {
                    return;
                }
            }
            Mood::Silent => {}
            Mood::Drips => {
                let _ = out.write_all(b"$1000000\r\n");
                // Ends when the client has closed the connection.
                while out.write_all(b" ").is_ok() {
                    std::thread::yield_now();
                }
                return;
            }
            Mood::Http => {
                let _ = out.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                return;
            }
            Mood::HangsUp => {
                let _ = out.write_all(&reply[..reply.len() / 2]);
                let _ = out.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }
}

fn read_command(input: &mut impl BufRead) -> Option<Vec<String>> {
    let mut number = |kind: char| -> Option<(usize, Vec<u8>)> {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let count = line.trim_end().strip_prefix(kind)?.parse().ok()?;
        let mut bytes = Vec::new();
        if kind == '$' {
            bytes.resize(count + 2, 0);
            input.read_exact(&mut bytes).ok()?;
            bytes.truncate(count);
        }
        Some((count, bytes))
    };
    let (count, _) = number('*')?;
    (0..count).map(|_| number('$').and_then(|(_, bytes)| String::from_utf8(bytes).ok())).collect()
}
