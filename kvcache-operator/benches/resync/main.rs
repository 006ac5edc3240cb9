//! What a large cluster costs the operator: `cargo bench -p kvcache-operator --bench resync`.
//!
//! A first process lets an operator bring up 1,000 caches of 5 servers on the API server in memory and saves the objects.
//! A second one serves these over HTTP. A third one starts a new operator on them, as after a restart, when everything
//! is as it should be, and measures itself: the time until all is listed and looked at, its memory, and one more look
//! at each.

mod process;
mod server;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kube::client::ClientBuilder;
use kube::{Client, Config};
use kvcache_operator::api::Options;
use kvcache_operator::clock::Clock;
use kvcache_operator::metrics::Metrics;
use kvcache_operator::mirror::CacheKey;
use kvcache_operator::operator::{Plan, run};
use kvcache_operator::reconcile::{Reconciler, Settings};
use kvcache_operator::stores::Scope;
use serde_json::json;
use tokio::sync::watch;

use process::{Memory, cpu, cpu_of};
use support::cluster::{Cluster, NAMESPACE, pass};
use support::controllers;

const CACHES: usize = 1000;
const SERVERS: usize = 5;
/// As the operator's flag has it.
const WORKERS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["populate", file] => populate(Path::new(file)),
        ["serve", file] => server::serve(Path::new(file)),
        ["measure", url, server] => measure(url, server.parse()?),
        // `cargo test --benches` only wants to know that it starts.
        ["--test"] => Ok(()),
        [] => {
            let file =
                std::env::temp_dir().join(format!("kvcache-operator-resync-{}.json", std::process::id()));
            let result = all(&file);
            std::fs::remove_file(&file)?;
            result
        }
        other => Err(format!("what is {other:?}?").into()),
    }
}

fn all(file: &Path) -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let succeeded = |command: &mut Command| -> Result<(), Box<dyn Error>> {
        let status = command.status()?;
        if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
    };
    succeeded(Command::new(&program).arg("populate").arg(file))?;
    let mut server = Command::new(&program).arg("serve").arg(file).stdout(Stdio::piped()).spawn()?;
    let mut url = String::new();
    let said = server.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut url));
    let result = match said {
        Some(Ok(1..)) => {
            succeeded(Command::new(&program).args(["measure", url.trim(), &server.id().to_string()]))
        }
        said => Err(format!("the API server did not start: {said:?}").into()),
    };
    server.kill()?;
    server.wait()?;
    result
}

/// Brings the caches up, in no time by the clock of the API server.
fn populate(file: &Path) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(async {
        let cluster = Cluster::without_controllers();
        for number in 0..CACHES {
            cluster.put_cache(&name(number), |cache| cache["spec"]["cache"]["replicas"] = json!(SERVERS));
        }
        let _operator = cluster.start("first");
        pass(30).await;
        controllers::fill(&cluster.server);
        pass(60).await;
        let unready = (0..CACHES).filter(|number| cluster.members(&name(*number)).len() != SERVERS).count();
        assert_eq!(unready, 0, "caches that did not come up");
        std::fs::write(file, serde_json::to_vec(&cluster.server.dump())?)?;
        Ok(())
    })
}

fn measure(url: &str, server: u32) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let requests = Arc::new(AtomicUsize::new(0));
        let reconciler = Arc::new(reconciler(counting_client(url, Arc::clone(&requests))?));
        let plan = Plan { scope: Scope::All, election: None, workers: WORKERS, seed: 7 };
        let (memory_before, cpu_before, server_before) = (Memory::now()?, cpu(), cpu_of(server)?);
        let started = Instant::now();
        let (ready, mut is_ready) = watch::channel(false);
        let operator = tokio::spawn(run(Arc::clone(&reconciler), plan, ready, std::future::pending()));
        is_ready.wait_for(|ready| *ready).await?;
        let (listed, cpu_listed) = (started.elapsed(), cpu());
        while looks(reconciler.metrics()) < CACHES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (resync, cpu_resync) = (started.elapsed(), cpu());
        let memory = Memory::now()?;
        println!("{CACHES} caches, {} pods", CACHES * SERVERS);
        println!(
            "full resync: {:.2} s, {:.2} s of CPU (lists {:.2} s, {:.2} s of CPU); the API server's {:.2} s of CPU apart",
            resync.as_secs_f64(),
            (cpu_resync - cpu_before).as_secs_f64(),
            listed.as_secs_f64(),
            (cpu_listed - cpu_before).as_secs_f64(),
            cpu_of(server)?.saturating_sub(server_before).as_secs_f64(),
        );
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "memory: {:.1} MB resident after it, {:.1} MB at most, {:.1} MB before",
            mb(memory.resident_bytes),
            mb(memory.peak_bytes),
            mb(memory_before.resident_bytes)
        );
        assert_eq!(count(reconciler.metrics(), "writes_total"), 0, "everything is as it should be");
        requests.store(0, Ordering::Relaxed);
        look_again(&reconciler).await;
        assert_eq!(requests.load(Ordering::Relaxed), 0, "looks without requests");
        operator.abort();
        Ok(())
    })
}

/// Looks at every cache, one after the other, as if each had news.
async fn look_again(reconciler: &Reconciler) {
    let keys: Vec<CacheKey> =
        (0..CACHES).map(|number| CacheKey { namespace: NAMESPACE.to_owned(), name: name(number) }).collect();
    let mut times = Vec::with_capacity(CACHES * ROUNDS);
    let cpu_before = cpu();
    for key in std::iter::repeat_n(&keys, ROUNDS).flatten() {
        let started = Instant::now();
        reconciler.look(key).await;
        times.push(started.elapsed());
    }
    let cpu = (cpu() - cpu_before).as_secs_f64() * 1e6 / times.len() as f64;
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!(
        "look at an unchanged cache: {cpu:.0} us of CPU; median {:.0} us, p99 {:.0} us; 0 requests",
        at(0.5),
        at(0.99)
    );
}

const ROUNDS: usize = 5;

fn reconciler(client: Client) -> Reconciler {
    let options = Options {
        adopt: BTreeSet::new(),
        server_image: "kvcache-server:test".to_owned(),
        redis_image: "redis:test".to_owned(),
    };
    // The clock of the API server in memory begins a month before.
    let clock: Clock = Arc::new(|| jiff::Timestamp::constant(1_769_904_000, 0));
    Reconciler::new(client, options, Settings::default(), clock, "second".to_owned(), 7)
}

fn counting_client(url: &str, requests: Arc<AtomicUsize>) -> Result<Client, Box<dyn Error>> {
    let counted = tower::util::MapRequestLayer::new(move |request| {
        requests.fetch_add(1, Ordering::Relaxed);
        request
    });
    let config = Config::new(url.parse()?);
    Ok(ClientBuilder::try_from(config)?.with_layer(&counted).build())
}

fn name(number: usize) -> String {
    format!("cache-{number:04}")
}

fn looks(metrics: &Metrics) -> usize {
    count(metrics, "reconciles_total")
}

fn count(metrics: &Metrics, name: &str) -> usize {
    let text = metrics.prometheus(jiff::Timestamp::UNIX_EPOCH);
    let prefix = format!("kvcache_operator_{name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}
