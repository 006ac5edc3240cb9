//! What a large cluster costs the operator: `cargo bench -p kvcache-operator --bench resync`.
//!
//! A first process lets an operator bring up 1,000 caches of 5 servers on the API server in memory and saves the objects.
//! A second one starts a new operator on them, as after a restart, when everything is as it should be, and measures:
//! the time until all is listed and looked at, memory, and the CPU time of one more look at each.

#[path = "../tests/support/mod.rs"]
mod support;

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kvcache_operator::mirror::CacheKey;
use serde_json::{Value, json};

use support::api_server::ApiServer;
use support::cluster::{Cluster, NAMESPACE, pass};
use support::controllers;

const CACHES: usize = 1000;
const SERVERS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match arguments.next().as_deref() {
        Some("populate") => populate(Path::new(&arguments.next().ok_or("no file")?)),
        Some("measure") => measure(Path::new(&arguments.next().ok_or("no file")?)),
        // `cargo test --benches` only wants to know that it starts.
        Some("--test") => Ok(()),
        Some(other) => Err(format!("what is {other}?").into()),
        None => {
            let file =
                std::env::temp_dir().join(format!("kvcache-operator-resync-{}.json", std::process::id()));
            let run = |part: &str| -> Result<(), Box<dyn Error>> {
                let status = Command::new(std::env::current_exe()?).arg(part).arg(&file).status()?;
                if status.success() { Ok(()) } else { Err(format!("{part}: {status}").into()) }
            };
            let result = run("populate").and_then(|()| run("measure"));
            std::fs::remove_file(&file)?;
            result
        }
    }
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

fn measure(file: &Path) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let objects: Vec<Value> = serde_json::from_slice(&std::fs::read(file)?)?;
        let count = objects.len();
        let cluster = Cluster::without_controllers();
        cluster.server.restore(objects);
        let memory_before = resident_bytes()?;
        let (started, cpu_before) = (Instant::now(), cpu()?);
        let operator = cluster.start("second");
        while looks(&cluster.server, &operator) < CACHES {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (resync, cpu_resync) = (started.elapsed(), cpu()?.saturating_sub(cpu_before));
        let memory = resident_bytes()?.saturating_sub(memory_before);
        assert_eq!(cluster.server.writes().len(), 0, "everything is as it should be");
        println!("{CACHES} caches, {} pods, {count} objects", CACHES * SERVERS);
        println!(
            "full resync: {:.2} s, {:.2} s of CPU, with the API server's part in both",
            resync.as_secs_f64(),
            cpu_resync.as_secs_f64()
        );
        println!(
            "memory: {:.1} MB more after it, with what the API server's answers left",
            memory as f64 / 1e6
        );
        cluster.server.forget();
        let mut times = Vec::with_capacity(CACHES);
        for number in 0..CACHES {
            let key = CacheKey { namespace: NAMESPACE.to_owned(), name: name(number) };
            let started = Instant::now();
            operator.reconciler.look(&key).await;
            times.push(started.elapsed());
        }
        assert!(cluster.server.requests().is_empty(), "looks without requests");
        times.sort_unstable();
        let at = |part: f64| times[((CACHES - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        println!("look at an unchanged cache: median {:.0} us, p99 {:.0} us, 0 requests", at(0.5), at(0.99));
        Ok(())
    })
}

fn name(number: usize) -> String {
    format!("cache-{number:04}")
}

fn looks(server: &ApiServer, operator: &support::cluster::Running) -> usize {
    let text = operator.reconciler.metrics().prometheus(server.now());
    let line = text.lines().find_map(|line| line.strip_prefix("kvcache_operator_reconciles_total "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn resident_bytes() -> Result<usize, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: usize = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// CPU time of this process, in Linux's hundredths of a second.
fn cpu() -> Result<Duration, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    // Fields after the name in parentheses; user and system time are the 12th and 13th of these.
    let fields: Vec<&str> = text.rsplit(')').next().ok_or("no fields")?.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}
