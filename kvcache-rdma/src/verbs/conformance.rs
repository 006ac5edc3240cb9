//! The rules of reliable connections that the code above relies on, as checks that run against any provider: the fake in
//! unit tests, soft RoCE in the guest, a real device where there is one.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Access, Buffer, Completion, Error, Memory, Port, Queue, QueuePair, QueuePairConfig, Region, Request,
    Status, Work,
};

/// One rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What holds, as a sentence with underscores.
    pub name: &'static str,
    /// Checks it between two ports that can reach each other, which may be the same.
    ///
    /// # Errors
    /// What was found instead.
    pub check: fn(&Port, &Port) -> Result<(), String>,
}

/// All rules. Each takes milliseconds on a device, and some seconds where a failure is only known by its time-out.
pub const RULES: [Rule; 7] = [
    Rule { name: "messages_arrive_in_order_with_their_numbers", check: messages },
    Rule { name: "reads_and_writes_scatter_and_gather", check: reads_and_writes },
    Rule { name: "a_message_waits_for_a_receive", check: waits },
    Rule { name: "what_a_region_does_not_allow_fails_and_changes_nothing", check: access },
    Rule { name: "a_message_too_long_for_its_receive_fails_both_sides", check: too_long },
    Rule { name: "failing_flushes_every_request", check: flushing },
    Rule { name: "an_armed_queue_makes_an_event", check: events },
];

type Outcome = Result<(), String>;

/// One end of a connection.
struct Side<'a> {
    port: &'a Port,
    pair: QueuePair,
}

impl Side<'_> {
    /// The next `count` completions.
    fn completions(&mut self, count: usize) -> Result<Vec<Completion>, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        while completions.len() < count {
            self.pair.poll(&mut completions).map_err(text)?;
            if Instant::now() > deadline {
                return Err(format!("{} of {count} completions came: {completions:?}", completions.len()));
            }
            std::thread::yield_now();
        }
        expect("completions", completions.len(), count)?;
        Ok(completions)
    }
}

fn connected<'a>(one: &'a Port, other: &'a Port, config: &QueuePairConfig) -> Result<[Side<'a>; 2], String> {
    let mut first = Side { port: one, pair: one.queue_pair(config).map_err(text)? };
    let mut second = Side { port: other, pair: other.queue_pair(config).map_err(text)? };
    first.pair.connect(&second.pair.address()).map_err(text)?;
    second.pair.connect(&first.pair.address()).map_err(text)?;
    Ok([first, second])
}

fn messages(one: &Port, other: &Port) -> Outcome {
    let [mut one, mut other] = connected(one, other, &QueuePairConfig::default())?;
    for (id, buffer) in buffers(other.port, 64, 2)?.into_iter().enumerate() {
        other.pair.post_receive(id as u64, Some(buffer)).map_err(text)?;
    }
    let mut message = buffers(one.port, 64, 1)?.remove(0);
    expect("the message fits", message.write(b"hello"), true)?;
    one.pair.post(vec![send(7, Some(message), None), send(8, None, Some(404))]).map_err(text)?;
    let sent = one.completions(2)?;
    expect("sent", results(&sent), vec![(7, Ok(())), (8, Ok(()))])?;
    expect("buffers given back", [sent[0].buffer.is_some(), sent[1].buffer.is_some()], [true, false])?;
    let received = other.completions(2)?;
    expect("received", results(&received), vec![(0, Ok(())), (1, Ok(()))])?;
    let message =
        |completion: &Completion| completion.buffer.as_ref().map(|buffer| buffer.message().to_vec());
    expect("the message", message(&received[0]), Some(b"hello".to_vec()))?;
    expect("its number", received[0].immediate, None)?;
    expect("the empty message", message(&received[1]), Some(Vec::new()))?;
    expect("its number", (received[1].queue, received[1].immediate), (Queue::Receive, Some(404)))
}

fn reads_and_writes(one: &Port, other: &Port) -> Outcome {
    let [mut one, other] = connected(one, other, &remote())?;
    let target = filled(other.port, 4096, Access::Remote, 1)?;
    let local = filled(one.port, 8192, Access::Local, 2)?;
    let slice = |offset: usize, bytes| local.slice_at(local.address() + offset, bytes).map_err(text);
    let (remote_address, remote_key) = (target.address() as u64 + 10, target.remote_key());
    let write = Work::Write { from: vec![slice(0, 3)?, slice(100, 2)?], remote_address, remote_key };
    let read = Work::Read { into: vec![slice(4096, 4)?, slice(5000, 4)?], remote_address, remote_key };
    one.pair
        .post(vec![
            Request { id: 1, work: write, signaled: false },
            Request { id: 2, work: read, signaled: true },
        ])
        .map_err(text)?;
    expect("completed", results(&one.completions(1)?), vec![(2, Ok(()))])?;
    expect("the write was retired by the read after it", one.pair.sends_in_flight(), 0)?;
    expect("the target", content(&target)[8..18].to_vec(), vec![1, 1, 2, 2, 2, 2, 2, 1, 1, 1])?;
    let local = content(&local);
    expect("the first segment", local[4095..4101].to_vec(), vec![2; 6])?;
    expect("the second segment", local[4999..5005].to_vec(), vec![2, 2, 1, 1, 1, 2])
}

fn waits(one: &Port, other: &Port) -> Outcome {
    let [mut one, mut other] = connected(one, other, &QueuePairConfig::default())?;
    one.pair.post(vec![send(1, None, Some(5))]).map_err(text)?;
    let mut early = Vec::new();
    one.pair.poll(&mut early).map_err(text)?;
    expect("completions without a receive", results(&early), Vec::new())?;
    other.pair.post_receive(9, None).map_err(text)?;
    expect("sent", results(&one.completions(1)?), vec![(1, Ok(()))])?;
    expect("received", other.completions(1)?[0].immediate, Some(5))
}

fn access(one: &Port, other: &Port) -> Outcome {
    // The region's access, offset into it, added to its key, whether the queue pair permits anything.
    let cases = [
        (Access::Local, 0, 0, true),
        (Access::Remote, 4092, 0, true),
        (Access::Remote, 0, 1 << 8, true),
        (Access::Remote, 0, 0, false),
    ];
    for (access, offset, wrong_key, permitted) in cases {
        let config = QueuePairConfig { remote_access: permitted, ..remote() };
        let [mut one, other] = connected(one, other, &config)?;
        let target = filled(other.port, 4096, access, 1)?;
        let local = filled(one.port, 4096, Access::Local, 2)?;
        let work = Work::Write {
            from: vec![local.slice_at(local.address(), 8).map_err(text)?],
            remote_address: target.address() as u64 + offset,
            remote_key: target.remote_key() ^ wrong_key,
        };
        one.pair.post(vec![Request { id: 1, work, signaled: false }]).map_err(text)?;
        let completions = one.completions(1)?;
        let case = format!("{access:?} at {offset}, key ^ {wrong_key}, permitted {permitted}");
        expect(&case, completions[0].result.is_err(), true)?;
        expect("the queue pair has failed", one.pair.is_failed(), true)?;
        expect("the target", content(&target), vec![1; 4096])?;
    }
    Ok(())
}

fn too_long(one: &Port, other: &Port) -> Outcome {
    let [mut one, mut other] = connected(one, other, &QueuePairConfig::default())?;
    let buffer = buffers(other.port, 16, 1)?.remove(0);
    other.pair.post_receive(3, Some(buffer)).map_err(text)?;
    let mut message = buffers(one.port, 64, 1)?.remove(0);
    expect("the message fits", message.write(&[7; 17]), true)?;
    one.pair.post(vec![send(1, Some(message), None)]).map_err(text)?;
    let sent = one.completions(1)?;
    expect("the message failed", (sent[0].id, sent[0].result.is_err()), (1, true))?;
    let received = other.completions(1)?;
    expect("the receive failed", (received[0].id, received[0].result.is_err()), (3, true))?;
    expect("nothing is passed on", received[0].buffer.as_ref().map(|buffer| buffer.message().len()), Some(0))
}

fn flushing(one: &Port, other: &Port) -> Outcome {
    let [mut one, _other] = connected(one, other, &QueuePairConfig::default())?;
    // Both messages wait for a receive that never comes.
    one.pair.post_receive(5, None).map_err(text)?;
    one.pair.post(vec![send(1, None, None), send(2, None, None)]).map_err(text)?;
    one.pair.fail().map_err(text)?;
    let flushed = Err(Status::Flushed);
    let mut found = results(&one.completions(3)?);
    // Each queue is in order; which of the two goes first is the device's choice.
    found.sort_by_key(|(id, _)| *id);
    expect("flushed", found, vec![(1, flushed), (2, flushed), (5, flushed)])?;
    expect("nothing is in flight", (one.pair.sends_in_flight(), one.pair.receives_in_flight()), (0, 0))?;
    let refused = one.pair.post(vec![send(3, None, None)]);
    expect("nothing is taken", matches!(refused, Err(Error::Broken)), true)
}

fn events(one: &Port, other: &Port) -> Outcome {
    let [mut one, mut other] = connected(one, other, &QueuePairConfig::default())?;
    for id in 1..3 {
        other.pair.post_receive(id, None).map_err(text)?;
    }
    other.pair.arm().map_err(text)?;
    expect("an event before a message", readable(&other.pair, 0), false)?;
    one.pair.post(vec![send(1, None, None)]).map_err(text)?;
    expect("an event for a message", readable(&other.pair, PATIENCE.as_millis() as i32), true)?;
    other.completions(1)?;
    other.pair.arm().map_err(text)?;
    expect("an event that was taken", readable(&other.pair, 0), false)?;
    one.pair.post(vec![send(2, None, None)]).map_err(text)?;
    expect("an event for the second message", readable(&other.pair, PATIENCE.as_millis() as i32), true)?;
    other.completions(1).map(|_| ())
}

fn readable(pair: &QueuePair, timeout_ms: i32) -> bool {
    let mut fd = libc::pollfd { fd: pair.event_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, open while the queue pair is borrowed.
    unsafe { libc::poll(&mut fd, 1, timeout_ms) == 1 }
}

fn remote() -> QueuePairConfig {
    QueuePairConfig { remote_access: true, segments_max: 4, ..Default::default() }
}

fn send(id: u64, message: Option<Buffer>, immediate: Option<u32>) -> Request {
    Request { id, work: Work::Send { message, immediate }, signaled: true }
}

fn buffers(port: &Port, bytes: u32, count: usize) -> Result<Vec<Buffer>, String> {
    let region = port.register(Memory::allocate(bytes as usize * count), Access::Local).map_err(text)?;
    let mut buffers = region.into_buffers(bytes);
    buffers.truncate(count);
    Ok(buffers)
}

fn filled(port: &Port, bytes: usize, access: Access, fill: u8) -> Result<Arc<Region>, String> {
    let memory = Memory::allocate(bytes);
    // SAFETY: fresh memory of at least that length, which nobody else knows.
    unsafe { std::ptr::write_bytes(memory.address() as *mut u8, fill, bytes) };
    Ok(Arc::new(port.register(memory, access).map_err(text)?))
}

fn content(region: &Region) -> Vec<u8> {
    // SAFETY: the region's own length; the requests that named it have completed.
    unsafe { std::slice::from_raw_parts(region.address() as *const u8, region.bytes()) }.to_vec()
}

fn results(completions: &[Completion]) -> Vec<(u64, Result<(), Status>)> {
    completions.iter().map(|completion| (completion.id, completion.result)).collect()
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    if found == wanted { Ok(()) } else { Err(format!("{what}: found {found:?}, wanted {wanted:?}")) }
}

fn text(error: Error) -> String {
    error.to_string()
}

/// Generous: soft RoCE in an emulated machine on a busy host is slow, and a device gives up after seconds.
const PATIENCE: Duration = Duration::from_secs(60);
