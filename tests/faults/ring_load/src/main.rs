//! `ring-load`: puts values on a ring, gets them back and verifies every byte, while a test harms servers and networks.
//!
//! It runs until its standard input ends, so it never outlives the test that started it, and writes one line of JSON a
//! report. The words `pause` and `resume` on its input stop and start new transfers; a paused client is quiet once
//! nothing is `open`. What must never happen is counted under `violations`: the test that reads the reports judges.

mod items;
mod losses;
mod questions;
mod report;
mod values;

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use kvcache_core::remote::RemoteStore;
use kvcache_core::ring_client::RingClientConfig;
use kvcache_rdma::members::{Members, RemoteUrl};
use kvcache_rdma::ring::{RingConfig, RingPresence, RingStore};

use items::Items;
use questions::Questions;
use values::Values;

/// Puts values on a ring and gets them back, verifying every byte.
#[derive(Debug, Parser)]
struct Args {
    /// The ring, as in `remote`.
    #[arg(long)]
    remote: String,
    /// Distinct values.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    values: u64,
    /// Their lengths, in turn.
    #[arg(long, value_delimiter = ',', default_values_t = [4096_usize, 65_536, 262_144])]
    value_bytes: Vec<usize>,
    /// Transfers in flight.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Transfers submitted together.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Transfers each second; 0 for as many as there is room for.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Puts of a hundred transfers.
    #[arg(long, default_value_t = 30)]
    puts_per_cent: u64,
    /// Get values in turn and put those that are missing, instead of either at random. Reports say what was lost.
    #[arg(long)]
    read_through: bool,
    /// How long a transfer or a question may take.
    #[arg(long, default_value_t = 1000)]
    patience_ms: u64,
    /// How much later its end may be seen here.
    #[arg(long, default_value_t = 1000)]
    slack_ms: u64,
    /// After which silence a server is taken for dead, and how long a connection may take.
    #[arg(long, default_value_t = 500)]
    silence_ms: u64,
    /// How long a dead server is left alone at most.
    #[arg(long, default_value_t = 1000)]
    backoff_max_ms: u64,
    /// Servers that hold each value.
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// Of the values. Clients with the same one share them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Time between reports.
    #[arg(long, default_value_t = 100)]
    report_ms: u64,
}

/// What the test wants, as its input says.
const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// How long it waits for ends before it looks at the time again.
const TURN: Duration = Duration::from_millis(5);

/// How long it waits for a first server; rings that are empty from the beginning are tried, too.
const MEMBERS_WAIT: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let url: RemoteUrl = args.remote.parse()?;
    let members = Members::open(&url, args.seed)?;
    let mut config = RingConfig::new(members.clone());
    config.connect_timeout = Duration::from_millis(args.silence_ms);
    config.client = RingClientConfig {
        replicas: args.replicas,
        silence_max: Duration::from_millis(args.silence_ms),
        backoff_max: Duration::from_millis(args.backoff_max_ms),
        ..RingClientConfig::default()
    };
    let values = Values { count: args.values, lengths: args.value_bytes.clone(), seed: args.seed };
    let (patience, slack) = (Duration::from_millis(args.patience_ms), Duration::from_millis(args.slack_ms));
    let mut items = Items::new(values.clone(), args.in_flight, patience, slack);
    if args.read_through {
        items.read_through();
    }
    // Dropped before the items, whose memory it uses.
    let store = RingStore::open(&config)?;
    let mut questions = Questions::new(RingPresence::open(&config)?, values, patience, slack);

    // Before it knows a server everything fails, which no change of the ring would explain.
    let known_by = Instant::now() + MEMBERS_WAIT;
    while store.stats().client.servers.is_empty() && Instant::now() < known_by {
        std::thread::sleep(TURN);
    }

    let wanted = listen();
    let start = Instant::now();
    let (mut next_report, mut next_item) = (start, start);
    let mut stopped_at = None;
    let mut ends = Vec::new();
    loop {
        let now = Instant::now();
        let wanted = wanted.load(Ordering::Relaxed);
        let room = items.room().min(args.batch);
        // A batch at a time, as an engine does, and never more to make up for lost time than a few of them.
        if wanted == RUN && room == args.batch.min(args.in_flight) && next_item <= now {
            items.submit(&store, room, args.puts_per_cent);
            if args.rate > 0 {
                let due = next_item.max(now - Duration::from_millis(50));
                next_item = due + Duration::from_secs(1) / args.rate * room as u32;
            }
        }
        questions.turn(wanted == RUN);
        if items.in_flight() > 0 {
            store.wait(TURN);
            store.poll(&mut ends);
            ends.drain(..).for_each(|end| items.end(end));
        } else {
            let pause = if wanted == RUN { next_item.saturating_duration_since(now) } else { TURN };
            std::thread::sleep(pause.min(TURN));
        }
        if wanted == STOP {
            let since = *stopped_at.get_or_insert(now);
            let is_idle = items.in_flight() == 0 && !questions.is_open();
            // What is open after that is stuck, and the last report says so.
            if is_idle || since.elapsed() > 2 * (patience + slack) {
                break;
            }
        }
        if next_report <= now {
            next_report = now + Duration::from_millis(args.report_ms);
            println!(
                "{}",
                report::report("report", start.elapsed(), (&mut items, &questions), &store, &members)
            );
        }
    }
    println!("{}", report::report("end", start.elapsed(), (&mut items, &questions), &store, &members));
    drop(store);
    Ok(())
}

/// Follows the standard input on a thread of its own.
fn listen() -> Arc<AtomicU8> {
    let wanted = Arc::new(AtomicU8::new(RUN));
    let said = wanted.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match line.trim() {
                "pause" => said.store(PAUSE, Ordering::Relaxed),
                "resume" => said.store(RUN, Ordering::Relaxed),
                _ => {}
            }
        }
        said.store(STOP, Ordering::Relaxed);
    });
    wanted
}
