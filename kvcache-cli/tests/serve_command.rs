//! `kvcache serve` as users run it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use kvcache_wire::Status;
use kvcache_wire::extension::{Hello, Welcome};
use kvcache_wire::stock::{Header, Op};

fn serve(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcache"));
    command.arg("serve").args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn refused(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = serve(args).output().expect("the tool starts");
    (status.code(), String::from_utf8(stderr).expect("text"))
}

/// A running server and what its first line says; killed if a test fails.
struct Running {
    child: Child,
    ready: serde_json::Value,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = serve(args).spawn().expect("the tool starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).expect("JSON");
        Self { child, ready }
    }

    fn connect(&self, which: &str) -> TcpStream {
        TcpStream::connect(self.ready[which].as_str().expect("an address")).expect("connected")
    }

    fn terminate(mut self) -> (Option<i32>, String) {
        let command = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &command]).status().expect("a shell").success());
        let status = self.child.wait().expect("it ends");
        let mut log = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
        (status.code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(stream: &mut TcpStream, op: Op, body: &[u8]) -> i32 {
    stream.write_all(&Header { op, body_bytes: body.len() as u32 }.encode()).expect("sent");
    stream.write_all(body).expect("sent");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("an answer");
    i32::from_le_bytes(answer)
}

#[test]
fn it_serves_until_it_is_terminated() {
    let server =
        Running::start(&["--listen", "127.0.0.1:0", "--manage", "127.0.0.1:0", "--capacity", "4MiB"]);
    assert_eq!(server.ready["event"], "ready");
    assert_eq!(server.ready["capacity_bytes"], 4 << 20);
    assert_eq!(server.ready["pid"], server.child.id());
    let mut stream = server.connect("listen");
    assert_eq!(ask(&mut stream, Op::Exists, b"k"), Status::OK.0);
    let mut manage = server.connect("manage");
    manage.write_all(b"GET /kvmap_len HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    manage.read_to_string(&mut answer).expect("text");
    assert!(answer.ends_with("{\"len\":0}"), "{answer}");
    let (status, log) = server.terminate();
    assert_eq!(status, Some(0));
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("info: ") && lines[0].contains("RDMA"), "{log}");
    assert_eq!(lines[1], "kvcache: info: stopping");
}

#[test]
fn the_token_of_the_file_is_asked_for() {
    let path = std::env::temp_dir().join(format!("kvcache-serve-token-{}", std::process::id()));
    std::fs::write(&path, "0123456789abcdef\n").expect("a file");
    let text = path.display().to_string();
    let server = Running::start(&["--listen", "127.0.0.1:0", "--capacity", "1MiB", "--token-file", &text]);
    std::fs::remove_file(&path).expect("ours");
    let mut stream = server.connect("listen");
    stream.write_all(&Hello::new(b"0123456789abcdef").encode().expect("short")).expect("sent");
    let mut answer = [0; 8 + Welcome::BYTES];
    stream.read_exact(&mut answer).expect("an answer");
    assert!(Welcome::decode(&answer[8..]).is_ok());
    assert_eq!(ask(&mut server.connect("listen"), Op::Exists, b"k"), Status::UNAUTHORIZED.0);
    assert_eq!(server.terminate().0, Some(0));
}

#[test]
fn what_cannot_work_is_refused_with_a_remedy() {
    let listen = ["--listen", "127.0.0.1:0", "--capacity"];
    let with = |more: &[&str]| refused(&[listen.as_slice(), more].concat());
    let (status, error) = with(&["4"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("--capacity 4 B is less than 1 MiB"), "{error}");
    let (status, error) = with(&["900TiB"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("is more than the memory of this machine"), "{error}");
    let (status, error) = with(&["plenty"]);
    assert_eq!(status, Some(2));
    assert!(error.contains("\"plenty\" is not a size"), "{error}");
    for longest in ["0", "2MiB"] {
        let (status, error) = with(&["1MiB", "--max-value", longest]);
        assert_eq!(status, Some(1));
        assert!(error.contains("is not between 1 and --capacity 1 MiB"), "{error}");
    }
    let (status, error) = with(&["1MiB", "--max-values", "0"]);
    assert_eq!(status, Some(2), "{error}");
    let (status, error) = with(&["1MiB", "--eviction", "s3-fifo"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("did you mean `s3fifo`?"), "{error}");
    let (status, error) = with(&["1MiB", "--token-file", "/no/such/token"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("cannot read /no/such/token"), "{error}");
    let (status, error) = with(&["1MiB", "--rdma", "required", "--rdma-device", "no_such_0"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("RDMA unavailable") || error.contains("no_such_0"), "{error}");
    let (status, error) = with(&["1MiB", "--tls-cert", "/a"]);
    assert_eq!(status, Some(2), "{error}");
    let (status, error) = refused(&["--listen", "here", "--capacity", "1MiB"]);
    assert_eq!(status, Some(2));
    assert!(error.contains("such as 127.0.0.1:12345"), "{error}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let (status, error) = refused(&["--listen", &address, "--capacity", "1MiB"]);
    assert_eq!(status, Some(1));
    let last = error.lines().last().expect("a message");
    assert!(last.starts_with(&format!("kvcache: cannot listen on {address}: ")), "{error}");
}

#[test]
fn every_option_is_documented() {
    let page = include_str!("../../docs/server.md");
    let help = serve(&["--help"]).output().expect("the tool starts").stdout;
    let help = String::from_utf8(help).expect("text");
    let options = help.lines().filter_map(|line| line.trim_start().strip_prefix("--")?.split(' ').next());
    let options: Vec<&str> = options.collect();
    assert!(options.len() >= 10, "{help}");
    for option in options {
        assert!(page.contains(&format!("--{option}")), "--{option}");
    }
}

#[test]
fn an_open_door_is_warned_of() {
    let server = Running::start(&["--listen", "0.0.0.0:0", "--capacity", "1MiB"]);
    let (status, log) = server.terminate();
    assert_eq!(status, Some(0));
    assert!(log.contains("warn: 0.0.0.0:") && log.contains("give a token, or listen on 127.0.0.1"), "{log}");
}
