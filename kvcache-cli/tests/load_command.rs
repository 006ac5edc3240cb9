//! Runs the built `kvcache load` as a user would, against a server on the loopback interface.

mod document;

#[path = "../../kvcache-load/src/tests/server.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests of the crate use all of it")]
mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use server::{Asked, Step, answer, models, part, response, stream_head, token};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A server that serves until it is dropped.
struct Server {
    address: SocketAddr,
    /// Requests so far, those for the list of models left out.
    count: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Server {
    fn start(reply: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::start_with(None, reply)
    }

    fn start_with(
        tls: Option<TlsAcceptor>,
        reply: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let (address, count) = (listener.local_addr().expect("an address"), Arc::new(AtomicU64::new(0)));
        let reply = Arc::new(move |asked: &Asked| match asked.line.as_str() {
            "GET /v1/models" => models(&["model"]),
            _ => reply(asked),
        });
        let counted = Arc::clone(&count);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reply, count, tls) = (Arc::clone(&reply), Arc::clone(&counted), tls.clone());
                tokio::spawn(async move {
                    let reply = |asked: &Asked| reply(asked);
                    // Clients that go away are part of some tests.
                    let _ = match tls {
                        None => server::serve(stream, count, reply).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => server::serve(stream, count, reply).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Self { address, count, _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Runs `kvcache load` against it.
    fn load(&self, workload: &Path, args: &[&str]) -> Output {
        command(&self.url(), workload, args).output().expect("the binary runs")
    }
}

fn command(url: &str, workload: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcache"));
    command.arg("load").arg(workload).args(["--url", url, "--model", "model"]).args(args);
    command.env_remove("OPENAI_API_KEY");
    command
}

fn quick(asked: &Asked) -> Vec<Step> {
    let tokens = asked.body["max_tokens"].as_u64().expect("a length") as usize;
    answer(asked, Duration::from_millis(2), &vec![Duration::ZERO; tokens - 1], 8)
}

fn never(_: &Asked) -> Vec<Step> {
    vec![Step::Hang]
}

/// An empty folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("load").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

/// A workload of so many requests, 1 ms apart, with answers of 5 tokens.
fn workload(folder: &Path, count: u64) -> PathBuf {
    let line = |index: u64| {
        format!(
            "{{\"timestamp\": {index}, \"output_length\": 5, \"pieces\": [[1, 16], [{}, 4]]}}\n",
            index + 2
        )
    };
    let path = folder.join("workload.jsonl");
    std::fs::write(&path, (0..count).map(line).collect::<String>()).expect("written");
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// The object that is printed with `--json`.
fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("written");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_workload_is_sent_and_every_request_written() {
    let (folder, server) = (folder("whole"), Server::start(quick));
    let out = folder.join("results.jsonl");
    let path = out.to_str().expect("text");
    let args = ["--json", "--out", path, "--api-key", "secret", "--warmup", "2", "--slo", "e2e=60000"];
    let output = server.load(&workload(&folder, 20), &args);
    let summary = object(&output);
    assert!(output.status.success(), "{summary}");
    assert_eq!((&summary["partial"], &summary["end"]), (&json!(false), &json!("complete")));
    assert_eq!(
        (&summary["answered"], &summary["warmup"], &summary["failed"]),
        (&json!(18), &json!(2), &json!(0))
    );
    assert_eq!((&summary["output_tokens"], &summary["prompt_tokens"]), (&json!(90), &json!(360)));
    assert_eq!((&summary["cached_tokens"], &summary["cached_ratio"]), (&json!(144), &json!(0.4)));
    assert_eq!((&summary["good"], &summary["slo"]), (&json!(18), &json!("e2e=60000")));
    // The server waits 2 ms before the first token.
    assert!(summary["ttft"]["p50_ms"].as_f64().expect("a time") >= 2.0, "{summary}");
    assert!(summary["e2e"]["max_ms"].as_f64() >= summary["ttft"]["p50_ms"].as_f64());
    assert_eq!((&summary["itl"]["count"], &summary["tpot"]["count"]), (&json!(72), &json!(18)));

    let lines = lines(&out);
    assert_eq!(lines.len(), 22);
    assert_eq!((&lines[0]["load"], &lines[0]["model"]), (&json!(1), &json!("model")));
    assert_eq!(lines[0]["endpoint"], server.url());
    let made_by = lines[0]["made_by"].as_str().expect("a command");
    assert!(made_by.starts_with("kvcache load ") && !made_by.contains("secret"), "{made_by}");
    let mut places: Vec<u64> =
        lines[1..21].iter().map(|line| line["index"].as_u64().expect("a place")).collect();
    places.sort_unstable();
    assert_eq!(places, (0..20).collect::<Vec<_>>());
    assert!(
        lines[1..21].iter().all(|line| line["output_tokens"] == 5 && line["ttft_ms"].as_f64() >= Some(2.0))
    );
    assert_eq!(lines[21]["summary"], summary);
}

#[test]
fn a_table_is_for_people() {
    let (folder, server) = (folder("table"), Server::start(quick));
    let output = server.load(&workload(&folder, 10), &["--rate", "constant:500", "--progress"]);
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(table.starts_with("10 answered, 0 failed, 0 unfinished, 0 of the warmup left out; "), "{table}");
    for row in
        ["offered", "answered", "output tokens", "cached tokens", "TTFT", "TTFT from due", "TPOT", "ITL"]
    {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row}: {table}");
    }
}

#[test]
fn the_closed_loop_is_that_of_the_header_or_of_the_command() {
    let (folder, server) = (folder("closed"), Server::start(quick));
    let path = folder.join("closed.jsonl");
    let requests =
        "{\"pieces\": [[1, 9]], \"session_id\": 7, \"output_length\": 2, \"think_ms\": 1}\n".repeat(6);
    std::fs::write(&path, format!("{{\"workload\": 1, \"concurrency\": 3}}\n{requests}")).expect("written");
    let summary = object(&server.load(&path, &["--json"]));
    assert_eq!((&summary["answered"], &summary["offered_per_s"]), (&json!(6), &Value::Null));
    let summary = object(&server.load(&path, &["--json", "--rate", "constant:500"]));
    assert!(summary["offered_per_s"].is_f64(), "{summary}");
    std::fs::write(&path, requests).expect("written");
    let summary = object(&server.load(&path, &["--json", "--concurrency", "2", "--requests", "4"]));
    assert_eq!((&summary["answered"], &summary["offered_per_s"]), (&json!(4), &Value::Null));
    let untimed = server.load(&path, &[]);
    assert!(text(&untimed.stderr).contains("request 0 (from 0) has no timestamp to go by; give a rate"));
    assert_eq!((untimed.status.code(), untimed.stdout.len()), (Some(1), 0));
}

#[test]
fn an_interrupted_run_keeps_what_it_has() {
    let folder = folder("interrupted");
    // The first 3 requests are answered, the others never.
    let server = Server::start(|asked| if asked.number < 3 { quick(asked) } else { never(asked) });
    let out = folder.join("results.jsonl");
    let args = ["--out", out.to_str().expect("text"), "--concurrency", "5"];
    let child = command(&server.url(), &workload(&folder, 500), &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // Until all 5 places are taken by requests that are never answered. A bound for the test, not for the program.
    for _ in 0..6000 {
        if server.count.load(Ordering::Relaxed) == 8 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(status.success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).starts_with("3 answered, 0 failed, 5 unfinished"),
        "{}",
        text(&output.stdout)
    );
    assert!(text(&output.stdout).contains("partial: interrupted"));
    let lines = lines(&out);
    assert_eq!(lines.len(), 5);
    assert_eq!(
        (&lines[4]["summary"]["partial"], &lines[4]["summary"]["end"]),
        (&json!(true), &json!("interrupted"))
    );
}

#[test]
fn an_endpoint_that_dies_ends_the_run_with_what_it_has() {
    let folder = folder("dead");
    let server = Server::start(|asked| if asked.number < 4 { quick(asked) } else { vec![Step::Close] });
    let output = server.load(&workload(&folder, 500), &["--json", "--max-errors", "6", "--concurrency", "1"]);
    let summary = object(&output);
    assert_eq!((output.status.code(), &summary["end"]), (Some(1), &json!("errors")));
    assert_eq!((&summary["answered"], &summary["failed"]), (&json!(4), &json!(6)));
    assert_eq!(summary["errors"]["reset"]["count"], 6);
}

#[test]
fn the_time_of_a_run_can_be_bounded() {
    let (folder, server) = (folder("duration"), Server::start(quick));
    let path = folder.join("endless.jsonl");
    let line = |index: u64| format!("{{\"timestamp\": {}, \"prompt\": \"hi\"}}\n", index * 3_600_000);
    std::fs::write(&path, (0..3).map(line).collect::<String>()).expect("written");
    let output = server.load(&path, &["--json", "--duration", "3", "--output-tokens", "3"]);
    let summary = object(&output);
    assert!(output.status.success());
    assert_eq!((&summary["partial"], &summary["end"]), (&json!(true), &json!("duration")));
    assert_eq!((&summary["answered"], &summary["output_tokens"]), (&json!(1), &json!(3)));
}

#[test]
fn bad_servers_are_told_apart() {
    let folder = folder("bad");
    let workload = workload(&folder, 1);
    type Reply = fn(&Asked) -> Vec<Step>;
    let stalls: Reply = |_| vec![stream_head(), part(&token(false, 0)), Step::Hang];
    let cuts: Reply = |_| vec![stream_head(), part(&token(false, 0)), Step::Close];
    let html: Reply = |_| response("200 OK", "content-type: text/html\r\n", "<html>");
    let full: Reply = |_| response("503 Service Unavailable", "retry-after: 9\r\n", "full");
    let cases: [(Reply, &[&str], &str, &str); 7] = [
        (never, &["--first-token-timeout", "0.2"], "first token timeout", "no token after 0.2 s"),
        (never, &["--request-timeout", "0.2"], "request timeout", "not answered after 0.2 s"),
        (stalls, &["--token-timeout", "0.2"], "token timeout", "no further token after 0.2 s"),
        (cuts, &[], "stream cut", ""),
        (|_| vec![Step::Close], &[], "reset", ""),
        (html, &[], "garbage", "of type `text/html`"),
        (full, &[], "status 503", "full"),
    ];
    for (reply, args, kind, message) in cases {
        let output = Server::start(reply).load(&workload, &[&["--json", "--no-check"], args].concat());
        let summary = object(&output);
        assert_eq!((output.status.code(), &summary["failed"]), (Some(1), &json!(1)), "{summary}");
        let first = summary["errors"][kind]["first"].as_str();
        assert!(first.is_some_and(|first| first.contains(message)), "{kind}: {summary}");
    }
}

#[test]
fn nothing_is_sent_where_it_would_be_in_vain() {
    let folder = folder("vain");
    let (workload, server) = (workload(&folder, 3), Server::start(quick));
    let out = folder.join("results.jsonl");
    let refused = |url: &str, args: &[&str]| {
        let output = command(url, &workload, args).args(["--out", out.to_str().expect("text")]).output();
        let output = output.expect("the binary runs");
        assert!(output.stdout.is_empty() && !output.status.success(), "{args:?}");
        (text(&output.stderr), out.exists())
    };
    let url = server.url();
    // Bound and not listened on: connections are refused, and nobody else can have the port.
    let unbound = TcpSocket::new_v4().expect("a socket");
    unbound.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let unbound_address = unbound.local_addr().expect("an address");
    let (error, begun) = refused(&format!("http://{unbound_address}"), &[]);
    assert!(!begun, "results of before are not overwritten");
    assert!(error.contains("/v1/models: ") && error.contains("refused"), "{error}");
    assert!(error.contains("is the address right, and the server running?"), "{error}");
    for (args, expected) in [
        (&["--rate", "often"][..], "`often` is no rate"),
        (&["--rate", "poisson:1", "--concurrency", "2"], "cannot be used with"),
        (&["--concurrency", "0"], "0"),
        (&["--concurrency", "99999"], "a concurrency of more than 65536"),
        (&["--concurrency", "2", "--turns", "timestamp"], "a closed loop has no timestamps"),
        (&["--vocabulary", "9..5"], "must be the first and the last token id"),
        (&["--vocabulary", "0..4294967295"], "must be the first and the last token id"),
        (&["--body", "[1]"], "must be a JSON object"),
        (&["--body", "{\"max_tokens\": 5}"], "`max_tokens` cannot be among the extra fields"),
        (&["--duration", "0"], "must be seconds above 0 to 86400"),
        (&["--token-timeout", "NaN"], "must be seconds above 0 to 86400"),
        (&["--slo", "itl=5"], "is no limit; write ttft, tpot or e2e"),
        (&["--api", "chat"], "only completions take"),
        (&["--api-key", "a\nb"], "characters that a header cannot have"),
    ] {
        let (error, _) = refused(&url, args);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    assert_eq!(server.count.load(Ordering::Relaxed), 0);
    let other = Command::new(env!("CARGO_BIN_EXE_kvcache"))
        .args(["load", workload.to_str().expect("text"), "--url", &url, "--model", "modle"])
        .output()
        .expect("the binary runs");
    assert!(text(&other.stderr).contains("has no model `modle`, it serves `model`"));
}

/// A key of its own for the server, in a file that the client is told to trust.
#[test]
fn connections_may_be_tls() {
    let folder = folder("tls");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("its key");
    let server = Server::start_with(Some(TlsAcceptor::from(Arc::new(config))), quick);
    let authorities = folder.join("authorities.pem");
    std::fs::write(&authorities, made.cert.pem()).expect("written");
    let url = format!("https://localhost:{}/v1", server.address.port());
    let load = |trusted: &Path| {
        let mut command = command(&url, &workload(&folder, 3), &["--json"]);
        command.env("SSL_CERT_FILE", trusted).env_remove("SSL_CERT_DIR").output().expect("the binary runs")
    };
    let output = load(&authorities);
    assert_eq!(object(&output)["answered"], 3, "{}", text(&output.stderr));
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(&authorities, other.cert.pem()).expect("written");
    let output = load(&authorities);
    assert!(text(&output.stderr).contains("certificate"), "{}", text(&output.stderr));
    assert!(!output.status.success());
    let none = folder.join("none.pem");
    std::fs::write(&none, "").expect("written");
    let error = text(&load(&none).stderr);
    assert!(error.contains("name a file of them in SSL_CERT_FILE"), "{error}");
}

/// Every block of shell commands in the document, one after the other in one folder, against a server in place of
/// localhost:8000.
#[test]
fn the_commands_in_the_document_work() {
    let (folder, server) = (folder("document"), Server::start(quick));
    let blocks = document::run("load.md", &folder, |block, bash| {
        bash.env("OPENAI_API_KEY", "key");
        block.replace("localhost:8000", &server.address.to_string())
    });
    assert!(blocks.len() >= 3, "the document has examples");
}
