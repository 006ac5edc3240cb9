//! What the client costs: `cargo bench -p kvcache-load --bench client_cpu`
//!
//! 100 requests a second, each answered with 64 tokens at known times by a server in another process, over loopback.
//! Printed is the processor time of this process per second, as a share of a core: for the client, and for the least
//! that could read the same streams, plain sockets on the same runtime whose bytes are thrown away. Both are measured
//! in turn.
//!
//! Beside it stands what the client measured. The server waits 50 ms before the first token and 10 ms before each
//! other; its own timers have a resolution of 1 ms.

#[path = "../src/tests/server.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests of the crate use all of it")]
mod server;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_load::{
    Api, BodyOptions, Error, LoadOptions, Observer, Pace, Percentiles, Progress, Record, Timeouts, run,
};
use kvcache_workload::{Content, Piece, Rate, Request, Vocabulary};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const RATE: &str = "constant:100";
const REQUESTS: usize = 2000;
const PROMPT_TOKENS: u64 = 1000;
const ANSWER_TOKENS: usize = 64;
const FIRST: Duration = Duration::from_millis(50);
const GAP: Duration = Duration::from_millis(10);
const TURNS: usize = 3;

fn main() {
    if std::env::args().any(|argument| argument == "--server") {
        return serve();
    }
    let program = std::env::current_exe().expect("this program");
    let mut process =
        Command::new(program).arg("--server").stdout(Stdio::piped()).spawn().expect("a server process");
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
    let address: SocketAddr = line.trim().parse().expect("an address");
    println!("{REQUESTS} requests at {RATE}, prompts of {PROMPT_TOKENS} tokens, answers of {ANSWER_TOKENS}");
    for turn in 1..=TURNS {
        let plain = share_of_a_core(|runtime| runtime.block_on(plain_sockets(address)));
        let client = share_of_a_core(|runtime| runtime.block_on(load(address, turn)));
        println!(
            "turn {turn}: client {client:.4} of a core, plain sockets {plain:.4}, ratio {:.2}",
            client / plain
        );
    }
    process.kill().expect("the server ends");
    process.wait().expect("the server ends");
}

/// Processor time of this process, divided by the time that passes.
fn share_of_a_core(work: impl FnOnce(&Runtime)) -> f64 {
    let runtime = runtime();
    let (cpu_s, started) = (cpu_s(), Instant::now());
    work(&runtime);
    (self::cpu_s() - cpu_s) / started.elapsed().as_secs_f64()
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn serve() {
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("an address"));
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            // As servers do that care for latency: without it the kernel collects tokens.
            stream.set_nodelay(true).expect("an option of TCP");
            tokio::spawn(async move {
                let gaps = [GAP; ANSWER_TOKENS - 1];
                // The clients of the last turn go away.
                let _ = server::serve(stream, Arc::default(), |asked| server::answer(asked, FIRST, &gaps, 0))
                    .await;
            });
        }
    });
}

/// What the command does.
async fn load(address: SocketAddr, turn: usize) {
    let options = LoadOptions {
        endpoint: format!("http://{address}/v1").parse().expect("a URL"),
        api_key: None,
        body: BodyOptions {
            model: "model".to_owned(),
            api: Api::Auto,
            vocabulary: Vocabulary { first: 1000, count: NonZeroU32::new(29_000).expect("not zero") },
            output_tokens: NonZeroU64::new(ANSWER_TOKENS as u64).expect("not zero"),
            plain_openai: false,
            extra: serde_json::Map::new(),
        },
        pace: Pace::Timestamps,
        timeouts: Timeouts::default(),
        in_flight_max: 1024,
        errors_max: 1,
        retries_max: 0,
        warmup: 0,
        duration: None,
        drain: Duration::from_secs(30),
        slo: None,
        check_model: false,
    };
    let rate: Rate = RATE.parse().expect("a rate");
    let requests = rate.times(1).take(REQUESTS).zip(0..).map(|(time_ms, stream)| {
        let content = Content::Pieces(vec![Piece { stream, tokens: PROMPT_TOKENS }]);
        Ok(Request { timestamp_ms: Some(time_ms), ..Request::new(content) })
    });
    let (summary, end) = run(&options, requests, &mut Nothing, std::future::pending()).await.expect("a run");
    assert!(!end.is_partial() && summary.failed == 0, "{summary:?}");
    assert_eq!(summary.output_tokens, (REQUESTS * ANSWER_TOKENS) as u64);
    for (name, times) in [("TTFT", summary.ttft), ("ITL", summary.itl), ("send lag", summary.lag)] {
        let Percentiles { p50_ms, p99_ms, max_ms, .. } = times.expect("times");
        println!("turn {turn}: {name} p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, max {max_ms:.2} ms");
    }
}

struct Nothing;

impl Observer for Nothing {
    fn start(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn record(&mut self, _: &Record) -> Result<(), Error> {
        Ok(())
    }

    fn progress(&mut self, _: &Progress) -> Result<(), Error> {
        Ok(())
    }
}

/// Sends as many bytes, at the same times, and reads each stream to its end.
async fn plain_sockets(address: SocketAddr) {
    let prompt = format!("[{}]", vec!["12345"; PROMPT_TOKENS as usize].join(","));
    let body = format!("{{\"prompt\": {prompt}}}");
    let head = format!("POST /v1/completions HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    let request: Arc<[u8]> = format!("{head}{body}").into_bytes().into();
    let rate: Rate = RATE.parse().expect("a rate");
    let started = tokio::time::Instant::now();
    let (idle_in, mut idle) = tokio::sync::mpsc::unbounded_channel();
    let mut streams = JoinSet::new();
    for time_ms in rate.times(1).take(REQUESTS) {
        tokio::time::sleep_until(started + Duration::from_secs_f64(time_ms / 1000.0)).await;
        let (request, idle_in) = (Arc::clone(&request), idle_in.clone());
        let stream = idle.try_recv().ok();
        streams.spawn(async move {
            let mut stream: TcpStream = match stream {
                Some(stream) => stream,
                None => TcpStream::connect(address).await.expect("a connection"),
            };
            stream.write_all(&request).await.expect("sends");
            let mut buffer = vec![0; 16 << 10];
            loop {
                let bytes = stream.read(&mut buffer).await.expect("receives");
                assert!(bytes > 0, "the server stays");
                if buffer[..bytes].ends_with(b"0\r\n\r\n") {
                    break;
                }
            }
            // The receiver is there as long as the run.
            let _ = idle_in.send(stream);
        });
        while streams.try_join_next().is_some() {}
    }
    while streams.join_next().await.is_some() {}
}
