//! Our client against our server over a real device: bytes, misses, refusals, a server that dies or stops.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer,
};
use kvcache_rdma::verbs::{Memory, Port};
use kvcache_rdma::verbs_client::{VerbsClient, VerbsClientConfig};

use crate::checks::{Checks, expect, pinned_bytes};
use crate::serve::{SLOT_BYTES, ServerProcess};

impl ServerProcess {
    fn target(&self) -> Target {
        Target { address: self.address(), stock: false }
    }
}

const DONE: RemoteOutcome = RemoteOutcome::Done;
const MISSING: RemoteOutcome = RemoteOutcome::Missing;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn check_all(checks: &mut Checks, port: &Port) {
    let with_server = |check: fn(&Port, Target) -> Result<(), String>| {
        let server = ServerProcess::start(0)?;
        check(port, server.target())
    };
    checks.run("bytes_loaded_are_bytes_stored", || with_server(bytes));
    checks.run("missing_values_are_found_among_present_ones", || with_server(missing));
    checks.run("too_large_is_refused_and_the_connection_goes_on", || with_server(too_large));
    checks.run("values_are_replaced_and_deleted", || with_server(replaced));
    checks.run("ten_thousand_small_requests", || with_server(many));
    checks.run("a_connection_pins_at_most_8_mib", || pinned(port));
    checks.run("a_server_killed_in_the_middle_fails_requests_and_hangs_none", || killed(port));
    checks.run("a_stopped_server_costs_the_patience_and_never_writes_late", || stopped(port));
}

/// The checks that any server must pass, against one that somebody else has started and that is process `server`.
pub(crate) fn check_foreign(checks: &mut Checks, port: &Port, address: SocketAddr, server: i32) {
    let target = Target { address, stock: true };
    checks.run("bytes_loaded_are_bytes_stored", || bytes(port, target));
    checks.run("missing_values_are_found_among_present_ones", || missing(port, target));
    checks.run("values_of_another_length_are_no_hits", || other_lengths(port, target));
    checks.run("values_are_replaced_and_deleted", || replaced(port, target));
    checks.run("ten_thousand_small_requests", || many(port, target));
    checks.run("a_server_killed_in_the_middle_fails_requests_and_hangs_none", || {
        let kill = || {
            // SAFETY: the number of a process that whoever started us has told us to kill.
            unsafe { libc::kill(server, libc::SIGKILL) };
        };
        killed_in_the_middle(port, target, kill).map(|_| ())
    });
}

/// Where a server is, and how long its connections take.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    address: SocketAddr,
    stock: bool,
}

impl Target {
    /// A stock server pins 512 MiB for a connection: that takes its time, and one must do.
    fn config(self, config: VerbsClientConfig) -> VerbsClientConfig {
        if self.stock { VerbsClientConfig { lanes: 1, connect_timeout: PATIENCE, ..config } } else { config }
    }
}

/// A client with a slab of 64 blocks of the largest size.
struct Client {
    store: VerbsClient,
    base: usize,
    next_ticket: u64,
}

const BLOCKS: usize = 64;

impl Client {
    fn new(port: &Port, target: Target, config: VerbsClientConfig) -> Result<Self, String> {
        let store = VerbsClient::new(target.address, port.clone(), target.config(config))
            .map_err(|error| error.to_string())?;
        let memory = Memory::allocate(SLOT_BYTES * BLOCKS);
        let base = memory.address();
        store.register(memory).map_err(|error| error.to_string())?;
        Ok(Self { store, base, next_ticket: 0 })
    }

    fn address(&self, block: usize) -> usize {
        self.base + block * SLOT_BYTES
    }

    /// Fills a block with bytes that depend on the seed and on the place.
    fn fill(&self, block: usize, bytes: usize, seed: u64) {
        // SAFETY: a block of our slab, which the client keeps; nothing is in flight for it.
        let block = unsafe { std::slice::from_raw_parts_mut(self.address(block) as *mut u8, bytes) };
        block.copy_from_slice(&pattern(seed, bytes));
    }

    fn content(&self, block: usize, bytes: usize) -> Vec<u8> {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.address(block) as *const u8, bytes) }.to_vec()
    }

    /// Begins transfers of (key, block, bytes).
    fn begin(&mut self, op: RemoteOp, values: &[(u64, usize, usize)], patience: Duration) -> Vec<u64> {
        let first = self.next_ticket;
        let batch: Vec<RemoteTransfer> = values
            .iter()
            .zip(first..)
            .map(|((number, block, bytes), ticket)| RemoteTransfer {
                ticket,
                op,
                key: key(*number),
                address: self.address(*block),
                bytes: *bytes,
            })
            .collect();
        self.next_ticket += batch.len() as u64;
        // SAFETY: blocks of our slab, which the client keeps; a block is touched only when its transfer has ended.
        unsafe { self.store.submit(&batch, patience) };
        (first..self.next_ticket).collect()
    }

    /// How these ended, each exactly once, within `limit`.
    fn ends(&self, tickets: &[u64], limit: Duration) -> Result<Vec<RemoteOutcome>, String> {
        let deadline = Instant::now() + limit;
        let mut outcomes = HashMap::new();
        let mut ended = Vec::new();
        while outcomes.len() < tickets.len() {
            if !self.store.wait(deadline.saturating_duration_since(Instant::now())) {
                return Err(format!("{} of {} ended within {limit:?}", outcomes.len(), tickets.len()));
            }
            self.store.poll(&mut ended);
            for end in ended.drain(..) {
                if !tickets.contains(&end.ticket) || outcomes.insert(end.ticket, end.outcome).is_some() {
                    return Err(format!("{end:?} ended twice, or was not asked for"));
                }
            }
        }
        Ok(tickets.iter().filter_map(|ticket| outcomes.get(ticket).copied()).collect())
    }

    fn run(&mut self, op: RemoteOp, values: &[(u64, usize, usize)]) -> Result<Vec<RemoteOutcome>, String> {
        let tickets = self.begin(op, values, PATIENCE);
        self.ends(&tickets, 2 * PATIENCE)
    }
}

fn key(number: u64) -> RemoteKey {
    let mut block = [0; 16];
    block[..8].copy_from_slice(&number.to_le_bytes());
    RemoteKey { space: RemoteSpace([7; 16]), block: BlockKey(block) }
}

pub(crate) fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            // Xorshift (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn bytes(port: &Port, target: Target) -> Result<(), String> {
    for config in
        [VerbsClientConfig::default(), VerbsClientConfig { lanes: 1, checksums: false, ..Default::default() }]
    {
        let mut client = Client::new(port, target, config)?;
        for bytes in [1, 4095, 4097, SLOT_BYTES] {
            let put: Vec<_> = (0..32).map(|number| (number, number as usize, bytes)).collect();
            put.iter().for_each(|(number, block, _)| client.fill(*block, bytes, number + 1));
            expect("put", client.run(RemoteOp::Put, &put)?, vec![DONE; 32])?;
            let get: Vec<_> = (0..32).map(|number| (31 - number, 32 + number as usize, bytes)).collect();
            expect("get", client.run(RemoteOp::Get, &get)?, vec![DONE; 32])?;
            for (number, block, _) in get {
                let equal = client.content(block, bytes) == pattern(number + 1, bytes);
                expect(&format!("value {number} of {bytes} bytes is equal"), equal, true)?;
            }
        }
    }
    Ok(())
}

fn missing(port: &Port, target: Target) -> Result<(), String> {
    let mut client = Client::new(port, target, VerbsClientConfig::default())?;
    // Names that no other check uses.
    let first = 5_000;
    client.fill(0, 4096, 5);
    let put: Vec<_> =
        (0..30).filter(|number| number % 3 != 0).map(|number| (first + number, 0, 4096)).collect();
    expect("put", client.run(RemoteOp::Put, &put)?, vec![DONE; 20])?;
    let get: Vec<_> = (0..30).map(|number| (first + number, 1 + number as usize, 4096)).collect();
    let wanted: Vec<_> = (0..30).map(|number| if number % 3 == 0 { MISSING } else { DONE }).collect();
    expect("get", client.run(RemoteOp::Get, &get)?, wanted)?;
    expect("a value", client.content(2, 4096) == pattern(5, 4096), true)?;
    expect("what is missing writes nothing", client.content(1, 4096) == vec![0; 4096], true)
}

fn too_large(port: &Port, target: Target) -> Result<(), String> {
    let mut client = Client::new(port, target, VerbsClientConfig { lanes: 1, ..Default::default() })?;
    let refused = RemoteOutcome::Failed(RemoteFailure::Refused);
    expect("a value above the slot", client.run(RemoteOp::Put, &[(1, 0, SLOT_BYTES + 1)])?, vec![refused])?;
    expect("the next value", client.run(RemoteOp::Put, &[(2, 0, SLOT_BYTES)])?, vec![DONE])?;
    other_lengths(port, target)
}

fn other_lengths(port: &Port, target: Target) -> Result<(), String> {
    let mut client = Client::new(port, target, VerbsClientConfig { lanes: 1, ..Default::default() })?;
    let corrupt = RemoteOutcome::Failed(RemoteFailure::Corrupt);
    expect("put", client.run(RemoteOp::Put, &[(3, 0, SLOT_BYTES)])?, vec![DONE])?;
    expect("asked for as a shorter one", client.run(RemoteOp::Get, &[(3, 1, 100)])?, vec![corrupt])?;
    expect(
        "asked for as a longer one",
        client.run(RemoteOp::Get, &[(3, 1, SLOT_BYTES + 9)])?,
        vec![corrupt],
    )?;
    expect("asked for as it is", client.run(RemoteOp::Get, &[(3, 1, SLOT_BYTES)])?, vec![DONE])
}

fn replaced(port: &Port, target: Target) -> Result<(), String> {
    let mut client = Client::new(port, target, VerbsClientConfig::default())?;
    for seed in 1..4 {
        client.fill(0, SLOT_BYTES, seed);
        expect("put", client.run(RemoteOp::Put, &[(1, 0, SLOT_BYTES)])?, vec![DONE])?;
        expect("get", client.run(RemoteOp::Get, &[(1, 1, SLOT_BYTES)])?, vec![DONE])?;
        expect("the newest", client.content(1, SLOT_BYTES) == pattern(seed, SLOT_BYTES), true)?;
    }
    expect("delete", client.run(RemoteOp::Delete, &[(1, 0, 0)])?, vec![DONE])?;
    expect("delete again", client.run(RemoteOp::Delete, &[(1, 0, 0)])?, vec![MISSING])?;
    expect("get", client.run(RemoteOp::Get, &[(1, 1, SLOT_BYTES)])?, vec![MISSING])
}

/// One key a request, 64 in flight, half of them missing.
fn many(port: &Port, target: Target) -> Result<(), String> {
    const REQUESTS: usize = 10_000;
    let config = VerbsClientConfig {
        lanes: 1,
        request_keys_max: 1,
        requests_in_flight: 16,
        checksums: false,
        ..Default::default()
    };
    let mut client = Client::new(port, target, config)?;
    let mut values = 0;
    let started = Instant::now();
    for round in 0..REQUESTS / 64 + 1 {
        let count = 64.min(REQUESTS - round * 64);
        // Every tenth round stores, the others load; every thirtieth asks for what is not there.
        let (op, absent) = match round % 10 {
            0 => (RemoteOp::Put, 0),
            5 if round % 30 == 5 => (RemoteOp::Get, 1000),
            _ => (RemoteOp::Get, 0),
        };
        let batch: Vec<_> = (0..count).map(|number| (number as u64 + absent, number, 1024)).collect();
        let wanted = if absent > 0 { MISSING } else { DONE };
        expect("outcomes", client.run(op, &batch)?.iter().all(|outcome| *outcome == wanted), true)?;
        values += count;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("       {values} requests in {seconds:.1} s, {:.0} a second", values as f64 / seconds);
    expect("requests", values, REQUESTS)
}

fn pinned(port: &Port) -> Result<(), String> {
    let server = ServerProcess::start(0)?;
    let (ours, theirs) = (pinned_bytes("self")?, server.pinned_bytes()?);
    let mut client =
        Client::new(port, server.target(), VerbsClientConfig { lanes: 1, ..Default::default() })?;
    expect("put", client.run(RemoteOp::Put, &[(1, 0, 4096)])?, vec![DONE])?;
    let ours = pinned_bytes("self")? - ours - (SLOT_BYTES * BLOCKS) as u64;
    let theirs = server.pinned_bytes()? - theirs;
    println!("       pinned for a connection: client {} KiB, server {} KiB", ours >> 10, theirs >> 10);
    expect("the client's is below 8 MiB", (1..=8 << 20).contains(&ours), true)?;
    expect("the server's is below 8 MiB", (1..=8 << 20).contains(&theirs), true)
}

fn killed(port: &Port) -> Result<(), String> {
    let mut server = ServerProcess::start(0)?;
    let address = server.address();
    let mut client = killed_in_the_middle(port, server.target(), || server.kill())?;
    // It comes back at the same place, empty, and is found.
    let server = ServerProcess::start(address.port())?;
    let deadline = Instant::now() + PATIENCE;
    while client.run(RemoteOp::Put, &[(0, 0, 4096)])? != [DONE] {
        expect("it is found again in time", Instant::now() < deadline, true)?;
        std::thread::yield_now();
    }
    expect("get", client.run(RemoteOp::Get, &[(0, 0, 4096), (1, 1, 4096)])?, vec![DONE, MISSING])?;
    drop(server);
    Ok(())
}

/// Loads are in flight when the server is killed. The client is given back.
fn killed_in_the_middle(port: &Port, target: Target, kill: impl FnOnce()) -> Result<Client, String> {
    let config = VerbsClientConfig { lanes: 2, request_keys_max: 1, ..Default::default() };
    let mut client = Client::new(port, target, config)?;
    let values: Vec<_> = (0..64).map(|number| (number, number as usize, SLOT_BYTES)).collect();
    expect("put", client.run(RemoteOp::Put, &values)?, vec![DONE; 64])?;
    let tickets = client.begin(RemoteOp::Get, &values, PATIENCE);
    kill();
    let started = Instant::now();
    let outcomes = client.ends(&tickets, 2 * PATIENCE)?;
    let done = outcomes.iter().filter(|outcome| **outcome == DONE).count();
    println!(
        "       {done} of 64 loads were done, all had ended after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let unreachable = RemoteOutcome::Failed(RemoteFailure::Unreachable);
    expect("the others", outcomes.iter().all(|outcome| [DONE, unreachable].contains(outcome)), true)?;
    Ok(client)
}

fn stopped(port: &Port) -> Result<(), String> {
    let server = ServerProcess::start(0)?;
    let config = VerbsClientConfig { lanes: 1, request_keys_max: 8, ..Default::default() };
    let mut client = Client::new(port, server.target(), config)?;
    let values: Vec<_> = (0..32).map(|number| (number, number as usize, SLOT_BYTES)).collect();
    expect("put", client.run(RemoteOp::Put, &values)?, vec![DONE; 32])?;
    server.signal(libc::SIGSTOP);
    let targets: Vec<_> = (0..32).map(|number| (number, 32 + number as usize, SLOT_BYTES)).collect();
    let tickets = client.begin(RemoteOp::Get, &targets, Duration::from_millis(300));
    let outcomes = client.ends(&tickets, PATIENCE)?;
    let timed_out = RemoteOutcome::Failed(RemoteFailure::TimedOut);
    expect("loads", outcomes, vec![timed_out; 32])?;
    // The memory is ours again. The server goes on with requests that it had received: nothing of it may arrive.
    targets.iter().for_each(|(_, block, bytes)| client.fill(*block, *bytes, 99));
    server.signal(libc::SIGCONT);
    expect("it is served again", client.run(RemoteOp::Get, &[(0, 0, SLOT_BYTES)])?, vec![DONE])?;
    let untouched =
        targets.iter().all(|(_, block, bytes)| client.content(*block, *bytes) == pattern(99, *bytes));
    expect("the memory is as we left it", untouched, true)
}
