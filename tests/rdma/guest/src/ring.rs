//! The ring over a real device: several servers, a slab that is registered once, presence over TCP, servers that die, stop
//! and hold damaged values.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::eviction::SlotId;
use kvcache_core::remote::{
    Presence, RemoteEnd, RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore,
    RemoteTransfer,
};
use kvcache_core::slab::{Slab, SlabConfig};
use kvcache_core::store::{SlabSlots, SlotMemory};
use kvcache_rdma::members::{Member, MemberList, Members, PlacementSource};
use kvcache_rdma::ring::{RdmaPort, RingConfig, RingPresence, RingStore};
use kvcache_rdma::verbs::{Port, PortWish};
use kvcache_wire::stock::{Header, Op, PayloadOp, TcpPayloadRequest};

use crate::checks::{Checks, expect, pinned_bytes};
use crate::serve::ServerProcess;

const SLOT_BYTES: usize = 64 << 10;
const SLOTS: usize = 48;
/// For what must not depend on how slow the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
const SPACE: RemoteSpace = RemoteSpace([9; 16]);
const DONE: RemoteOutcome = RemoteOutcome::Done;
const MISSING: RemoteOutcome = RemoteOutcome::Missing;

/// Checks of a ring of servers of ours.
pub(crate) fn check_all(checks: &mut Checks, port: &Port) {
    checks.run("ring_bytes_loaded_are_bytes_stored", || {
        let servers = [ServerProcess::cache(0)?, ServerProcess::cache(0)?, ServerProcess::cache(0)?];
        bytes(port, &servers.each_ref().map(|server| server.address()))
    });
    checks.run("ring_registers_the_slab_once", || slab_is_pinned_once(port));
    checks.run("ring_finds_damaged_values", || {
        let server = ServerProcess::cache(0)?;
        damaged(port, server.address(), 0)
    });
    checks.run("ring_shares_values_with_clients_over_tcp", || shared_with_tcp(port));
    checks.run("ring_goes_on_without_a_killed_server", || killed(port));
    checks.run("ring_memory_is_not_written_after_a_timeout", || stopped(port));
    checks.run("ring_says_why_it_has_no_device", no_device);
}

/// Checks against one server that somebody else has started.
pub(crate) fn check_foreign(checks: &mut Checks, port: &Port, address: SocketAddr) {
    checks.run("ring_bytes_loaded_are_bytes_stored", || bytes(port, &[address]));
    checks.run("ring_finds_damaged_values", || damaged(port, address, 500));
}

/// A client with a slab.
struct Client {
    // Dropped before the slab.
    store: RingStore,
    slots: Arc<SlabSlots>,
    next_ticket: u64,
}

fn config(rdma: RdmaPort, servers: &[SocketAddr]) -> Result<RingConfig, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let addresses = servers.iter().map(|address| address.to_string().parse());
    let members: Result<Vec<_>, _> = addresses.map(|address| address.map(Member::at)).collect();
    let list = MemberList::new(members.map_err(|error| text(&error))?).map_err(|error| text(&error))?;
    let members = Members::fixed(list, PlacementSource::Computed).map_err(|error| text(&error))?;
    let mut config = RingConfig::new(members);
    config.rdma = Some(rdma);
    config.connect_timeout = PATIENCE;
    config.client.silence_max = PATIENCE;
    config.client.backoff_max = Duration::from_millis(500);
    Ok(config)
}

impl Client {
    fn open(config: &RingConfig) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let slab = Slab::open(&SlabConfig::anonymous(SLOT_BYTES, SLOTS)).map_err(|error| text(&error))?;
        let slots = Arc::new(SlabSlots::new(slab, false));
        while slots.is_growing() {
            std::thread::yield_now();
        }
        let store = RingStore::open(config).map_err(|error| text(&error))?;
        // SAFETY: slots of a slab.
        unsafe { store.register(Arc::clone(&slots) as _) }.map_err(|error| text(&error))?;
        Ok(Self { store, slots, next_ticket: 1 })
    }

    fn address(&self, slot: usize) -> usize {
        self.slots.slot_address(SlotId(slot as u32)).unwrap_or(0)
    }

    fn fill(&self, slot: usize, bytes: &[u8]) {
        // SAFETY: a slot of our slab; nothing is in flight for it.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.address(slot) as *mut u8, bytes.len().min(SLOT_BYTES)) };
    }

    fn content(&self, slot: usize, bytes: usize) -> Vec<u8> {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.address(slot) as *const u8, bytes.min(SLOT_BYTES)) }.to_vec()
    }

    /// Begins transfers of values `first` and following, in slots from 0 on.
    fn begin(
        &mut self,
        op: RemoteOp,
        first: u64,
        count: usize,
        bytes: usize,
        patience: Duration,
    ) -> Vec<u64> {
        let ticket = self.next_ticket;
        let batch: Vec<RemoteTransfer> = (0..count)
            .map(|slot| RemoteTransfer {
                ticket: ticket + slot as u64,
                op,
                key: key(first + slot as u64),
                address: self.address(slot),
                bytes,
            })
            .collect();
        self.next_ticket += count as u64;
        // SAFETY: slots of a slab that is kept, touched only when all of a batch have ended.
        unsafe { self.store.submit(&batch, patience) };
        (ticket..self.next_ticket).collect()
    }

    fn ends(&self, tickets: &[u64]) -> Result<Vec<RemoteOutcome>, String> {
        let deadline = Instant::now() + 2 * PATIENCE;
        let (mut outcomes, mut ends) = (HashMap::new(), Vec::<RemoteEnd>::new());
        while outcomes.len() < tickets.len() {
            if !self.store.wait(deadline.saturating_duration_since(Instant::now())) {
                return Err(format!("{} of {} ended", outcomes.len(), tickets.len()));
            }
            self.store.poll(&mut ends);
            for end in ends.drain(..) {
                if !tickets.contains(&end.ticket) || outcomes.insert(end.ticket, end.outcome).is_some() {
                    return Err(format!("{end:?} ended twice, or was not asked for"));
                }
            }
        }
        Ok(tickets.iter().filter_map(|ticket| outcomes.get(ticket).copied()).collect())
    }

    fn run(
        &mut self,
        op: RemoteOp,
        first: u64,
        count: usize,
        bytes: usize,
    ) -> Result<Vec<RemoteOutcome>, String> {
        let tickets = self.begin(op, first, count, bytes, PATIENCE);
        self.ends(&tickets)
    }

    fn put(&mut self, first: u64, count: usize, bytes: usize) -> Result<Vec<RemoteOutcome>, String> {
        (0..count).for_each(|slot| self.fill(slot, &pattern(first + slot as u64, bytes)));
        self.run(RemoteOp::Put, first, count, bytes)
    }

    /// Loads values; the bytes of those that were there are those that were stored.
    fn get(&mut self, first: u64, count: usize, bytes: usize) -> Result<Vec<RemoteOutcome>, String> {
        (0..count).for_each(|slot| self.fill(slot, &vec![0xee; bytes]));
        let outcomes = self.run(RemoteOp::Get, first, count, bytes)?;
        for (slot, outcome) in outcomes.iter().enumerate() {
            let equal = self.content(slot, bytes) == pattern(first + slot as u64, bytes);
            expect("bytes of a hit", equal || *outcome != DONE, true)?;
        }
        Ok(outcomes)
    }
}

fn key(number: u64) -> RemoteKey {
    let mut block = [0; 16];
    block[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    block[8..].copy_from_slice(&number.to_le_bytes());
    RemoteKey { space: SPACE, block: BlockKey(block) }
}

fn pattern(number: u64, bytes: usize) -> Vec<u8> {
    crate::store::pattern(number + 1_000_003, bytes)
}

fn bytes(port: &Port, servers: &[SocketAddr]) -> Result<(), String> {
    let settings = config(RdmaPort::Opened(port.clone()), servers)?;
    let mut client = Client::open(&settings)?;
    let mut first = 0;
    for bytes in [1, 4095, SLOT_BYTES] {
        expect("before", client.get(first, SLOTS, bytes)?, vec![MISSING; SLOTS])?;
        expect("put", client.put(first, SLOTS, bytes)?, vec![DONE; SLOTS])?;
        expect("get", client.get(first, SLOTS, bytes)?, vec![DONE; SLOTS])?;
        first += 100;
    }
    let mut presence = RingPresence::open(&settings).map_err(|error| error.to_string())?;
    presence.set_spaces(&[SPACE]);
    let keys: Vec<BlockKey> = (0..SLOTS as u64 * 2).map(|number| key(number).block).collect();
    presence.ask(1, &keys, PATIENCE);
    let (mut answers, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while answers.is_empty() {
        expect("presence is answered in time", Instant::now() < deadline, true)?;
        presence.wait(PATIENCE);
        presence.poll(&mut answers);
    }
    let found: Vec<bool> = answers.remove(0).present;
    expect("present", found, (0..SLOTS * 2).map(|index| index < SLOTS).collect())?;
    expect("delete", client.run(RemoteOp::Delete, 0, 3, 1)?, vec![DONE; 3])?;
    expect("delete again", client.run(RemoteOp::Delete, 0, 3, 1)?, vec![MISSING; 3])?;
    expect("deleted", client.get(0, 4, 1)?, vec![MISSING, MISSING, MISSING, DONE])?;
    for (address, server) in client.store.stats().connections.into_values() {
        println!("       {address}: {:?} queue pairs, extension {:?}", server.queue_pairs, server.extension);
        expect("a queue pair", server.queue_pairs, Some(1))?;
        expect("problem", server.problem(), None)?;
    }
    Ok(())
}

fn slab_is_pinned_once(port: &Port) -> Result<(), String> {
    let server = ServerProcess::cache(0)?;
    let before = pinned_bytes("self")?;
    let mut client = Client::open(&config(RdmaPort::Opened(port.clone()), &[server.address()])?)?;
    expect("put", client.put(0, SLOTS, SLOT_BYTES)?, vec![DONE; SLOTS])?;
    let slab = (SLOTS * SLOT_BYTES) as u64;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pinned = pinned_bytes("self")? - before;
        // And what the queue pair has for its messages.
        if pinned >= slab {
            println!("       pinned beside the slab: {} KiB", (pinned - slab) >> 10);
            return expect("pinned beside the slab", pinned - slab <= 1 << 20, true);
        }
        expect("it is registered in time", Instant::now() < deadline, true)?;
        std::thread::yield_now();
    }
}

/// What is put over RDMA is found over TCP and through shared memory, and the other way round.
fn shared_with_tcp(port: &Port) -> Result<(), String> {
    let server = ServerProcess::cache(0)?;
    let rdma = config(RdmaPort::Opened(port.clone()), &[server.address()])?;
    let tcp = RingConfig { rdma: None, shared_memory: false, ..rdma.clone() };
    let local = RingConfig { rdma: None, shared_memory: true, ..rdma.clone() };
    let mut clients = [Client::open(&rdma)?, Client::open(&tcp)?, Client::open(&local)?];
    for putter in 0..clients.len() {
        let first = putter as u64 * 100;
        expect("put", clients[putter].put(first, 16, SLOT_BYTES)?, vec![DONE; 16])?;
        for client in &mut clients {
            expect("get", client.get(first, 16, SLOT_BYTES)?, vec![DONE; 16])?;
        }
    }
    Ok(())
}

/// Other bytes under a value's name, stored over TCP as any client may.
fn damaged(port: &Port, server: SocketAddr, first: u64) -> Result<(), String> {
    let mut client = Client::open(&config(RdmaPort::Opened(port.clone()), &[server])?)?;
    expect("put", client.put(first, 4, 4096)?, vec![DONE; 4])?;
    overwrite(server, &key(first + 2).name(), &pattern(77, 4096)).map_err(|error| error.to_string())?;
    let corrupt = RemoteOutcome::Failed(RemoteFailure::Corrupt);
    let missing_or_corrupt = client.get(first, 4, 4096)?;
    expect("the others", [missing_or_corrupt[0], missing_or_corrupt[1], missing_or_corrupt[3]], [DONE; 3])?;
    expect("the damaged one", [corrupt, MISSING].contains(&missing_or_corrupt[2]), true)
}

fn overwrite(server: SocketAddr, name: &[u8], value: &[u8]) -> std::io::Result<()> {
    let put = PayloadOp::Put { value_bytes: value.len() as u32 };
    let body = TcpPayloadRequest { key: name, op: put }.encode().map_err(std::io::Error::other)?;
    let mut message = Header { op: Op::Payload, body_bytes: body.len() as u32 }.encode().to_vec();
    message.extend(body);
    message.extend(value);
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(&message)?;
    let mut status = [0; 4];
    stream.read_exact(&mut status)?;
    if status == 200_i32.to_le_bytes() { Ok(()) } else { Err(std::io::Error::other(format!("{status:?}"))) }
}

fn killed(port: &Port) -> Result<(), String> {
    let mut servers = [ServerProcess::cache(0)?, ServerProcess::cache(0)?, ServerProcess::cache(0)?];
    let addresses = servers.each_ref().map(|server| server.address());
    let mut client = Client::open(&config(RdmaPort::Opened(port.clone()), &addresses)?)?;
    expect("put", client.put(0, SLOTS, SLOT_BYTES)?, vec![DONE; SLOTS])?;
    let tickets = client.begin(RemoteOp::Get, 0, SLOTS, SLOT_BYTES, PATIENCE);
    servers[1].kill();
    let started = Instant::now();
    let outcomes = client.ends(&tickets)?;
    let lost = outcomes.iter().filter(|outcome| **outcome != DONE).count();
    println!(
        "       {lost} of {SLOTS} loads were lost, all had ended after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let unreachable = RemoteOutcome::Failed(RemoteFailure::Unreachable);
    expect("the others", outcomes.iter().all(|outcome| [DONE, unreachable].contains(outcome)), true)?;
    let outcomes = client.get(0, SLOTS, SLOT_BYTES)?;
    let there = outcomes.iter().filter(|outcome| **outcome == DONE).count();
    expect("two thirds are there", (SLOTS / 3..SLOTS).contains(&there), true)?;
    let again = ServerProcess::cache(addresses[1].port())?;
    let deadline = Instant::now() + PATIENCE;
    while client.put(0, SLOTS, SLOT_BYTES)? != vec![DONE; SLOTS] {
        expect("it is found again in time", Instant::now() < deadline, true)?;
    }
    expect("get", client.get(0, SLOTS, SLOT_BYTES)?, vec![DONE; SLOTS])?;
    drop(again);
    Ok(())
}

fn stopped(port: &Port) -> Result<(), String> {
    let server = ServerProcess::cache(0)?;
    let mut client = Client::open(&config(RdmaPort::Opened(port.clone()), &[server.address()])?)?;
    expect("put", client.put(0, SLOTS, SLOT_BYTES)?, vec![DONE; SLOTS])?;
    server.signal(libc::SIGSTOP);
    let tickets = client.begin(RemoteOp::Get, 0, SLOTS, SLOT_BYTES, Duration::from_millis(300));
    let timed_out = RemoteOutcome::Failed(RemoteFailure::TimedOut);
    expect("loads", client.ends(&tickets)?, vec![timed_out; SLOTS])?;
    // The memory is ours again. The server goes on with what it had received: nothing of it may arrive.
    (0..SLOTS).for_each(|slot| client.fill(slot, &[0x55; SLOT_BYTES]));
    server.signal(libc::SIGCONT);
    let deadline = Instant::now() + PATIENCE;
    while client.run(RemoteOp::Put, 1000, 1, SLOT_BYTES)? != [DONE] {
        expect("it is served again in time", Instant::now() < deadline, true)?;
    }
    let untouched = (0..SLOTS).all(|slot| client.content(slot, SLOT_BYTES) == [0x55; SLOT_BYTES]);
    expect("the memory is as we left it", untouched, true)
}

fn no_device() -> Result<(), String> {
    let server = ServerProcess::cache(0)?;
    let wish = PortWish { device: Some("no-such-device".to_owned()), ..PortWish::default() };
    let mut client = Client::open(&config(RdmaPort::Wish(wish), &[server.address()])?)?;
    let unreachable = RemoteOutcome::Failed(RemoteFailure::Unreachable);
    expect("put", client.put(0, 2, 4096)?, vec![unreachable; 2])?;
    let stats = client.store.stats();
    let problem = stats.connections.values().find_map(|(_, server)| server.problem()).unwrap_or_default();
    expect("the reason", problem.contains("there is no RDMA device \"no-such-device\""), true)
}
