//! The rules of reliable connections, on the fake. The guest's program checks the same rules on soft RoCE.

use std::sync::Arc;

use super::*;
use crate::verbs::{Buffer, Completion, Queue, QueuePair, QueuePairConfig, Region, Request, Status, Work};

struct Side {
    port: Port,
    pair: QueuePair,
}

fn sides(network: &FakeNetwork, config: &QueuePairConfig) -> [Side; 2] {
    let ports = [network.port(), network.port()];
    let [mut one, mut other] = ports.map(|port| Side { pair: port.queue_pair(config).unwrap(), port });
    one.pair.connect(&other.pair.address()).unwrap();
    other.pair.connect(&one.pair.address()).unwrap();
    [one, other]
}

fn remote() -> QueuePairConfig {
    QueuePairConfig { remote_access: true, segments_max: 4, ..Default::default() }
}

fn buffers(port: &Port, bytes: u32, count: usize) -> Vec<Buffer> {
    let region = port.register(Memory::allocate(bytes as usize * count), Access::Local).unwrap();
    let mut buffers = region.into_buffers(bytes);
    buffers.truncate(count);
    buffers
}

fn filled(port: &Port, bytes: usize, access: Access, fill: u8) -> Arc<Region> {
    let memory = Memory::allocate(bytes);
    // SAFETY: fresh memory of at least that length.
    unsafe { std::ptr::write_bytes(memory.address() as *mut u8, fill, bytes) };
    Arc::new(port.register(memory, access).unwrap())
}

fn content(region: &Region, bytes: usize) -> Vec<u8> {
    // SAFETY: the region is longer, and nothing is in flight.
    unsafe { std::slice::from_raw_parts(region.address() as *const u8, bytes) }.to_vec()
}

fn poll(side: &mut Side) -> Vec<Completion> {
    let mut completions = Vec::new();
    side.pair.poll(&mut completions).unwrap();
    completions
}

fn send(id: u64, message: Option<Buffer>, immediate: Option<u32>) -> Request {
    Request { id, work: Work::Send { message, immediate }, signaled: true }
}

fn results(completions: &[Completion]) -> Vec<(u64, Result<(), Status>)> {
    completions.iter().map(|completion| (completion.id, completion.result)).collect()
}

#[test]
fn messages_arrive_in_order_with_their_numbers_and_buffers_come_back() {
    let network = FakeNetwork::new();
    let [mut one, mut other] = sides(&network, &QueuePairConfig::default());
    for (id, buffer) in buffers(&other.port, 64, 2).into_iter().enumerate() {
        other.pair.post_receive(id as u64, Some(buffer)).unwrap();
    }
    let mut message = buffers(&one.port, 64, 1).remove(0);
    assert!(message.write(b"hello"));
    one.pair.post(vec![send(7, Some(message), None), send(8, None, Some(404))]).unwrap();
    let sent = poll(&mut one);
    assert_eq!(results(&sent), [(7, Ok(())), (8, Ok(()))]);
    assert!(sent[0].buffer.is_some() && sent[1].buffer.is_none());
    let received = poll(&mut other);
    assert_eq!(results(&received), [(0, Ok(())), (1, Ok(()))]);
    assert_eq!(received[0].buffer.as_ref().unwrap().message(), b"hello");
    assert_eq!((received[1].queue, received[1].immediate), (Queue::Receive, Some(404)));
    assert_eq!(received[1].buffer.as_ref().unwrap().message(), b"");
}

#[test]
fn reads_and_writes_scatter_and_gather() {
    let network = FakeNetwork::new();
    let [mut one, other] = sides(&network, &remote());
    let target = filled(&other.port, 4096, Access::Remote, 1);
    let local = filled(&one.port, 8192, Access::Local, 2);
    let slice = |offset: usize, bytes| local.slice_at(local.address() + offset, bytes).unwrap();
    let (remote_address, remote_key) = (target.address() as u64 + 10, target.remote_key());
    one.pair
        .post(vec![
            Request {
                id: 1,
                work: Work::Write { from: vec![slice(0, 3), slice(100, 2)], remote_address, remote_key },
                signaled: false,
            },
            Request {
                id: 2,
                work: Work::Read { into: vec![slice(4096, 4), slice(5000, 4)], remote_address, remote_key },
                signaled: true,
            },
        ])
        .unwrap();
    assert_eq!(one.pair.sends_in_flight(), 2);
    assert_eq!(results(&poll(&mut one)), [(2, Ok(()))]);
    assert_eq!(one.pair.sends_in_flight(), 0, "the write was retired by the read after it");
    assert_eq!(content(&target, 18)[8..], [1, 1, 2, 2, 2, 2, 2, 1, 1, 1]);
    let local = content(&local, 8192);
    assert_eq!((&local[4096..4101], &local[5000..5005]), (&[2, 2, 2, 2, 2][..], &[2, 1, 1, 1, 2][..]));
}

#[test]
fn a_message_waits_for_a_receive_or_fails_if_it_may_not() {
    let network = FakeNetwork::new();
    let [mut one, mut other] = sides(&network, &QueuePairConfig::default());
    one.pair.post(vec![send(1, None, Some(5))]).unwrap();
    assert!(poll(&mut one).is_empty());
    other.pair.post_receive(9, None).unwrap();
    assert_eq!(results(&poll(&mut one)), [(1, Ok(()))]);
    assert_eq!(poll(&mut other)[0].immediate, Some(5));

    let impatient = QueuePairConfig { rnr_retries: 0, ..Default::default() };
    let [mut one, _other] = sides(&network, &impatient);
    one.pair.post(vec![send(1, None, None), send(2, None, None)]).unwrap();
    assert_eq!(results(&poll(&mut one)), [(1, Err(Status::RnrRetriesExceeded)), (2, Err(Status::Flushed))]);
    assert!(one.pair.is_failed());
}

#[test]
fn what_a_region_does_not_allow_fails_both_sides() {
    let network = FakeNetwork::new();
    let cases: [(Access, i64, u32, bool); 4] = [
        (Access::Local, 0, 0, true),
        (Access::Remote, 4090, 0, true),
        (Access::Remote, 0, 1, true),
        (Access::Remote, 0, 0, false),
    ];
    for (access, offset, wrong_key, permitted) in cases {
        let [mut one, mut other] = sides(&network, &QueuePairConfig { remote_access: permitted, ..remote() });
        other.pair.post_receive(3, None).unwrap();
        let target = filled(&other.port, 4096, access, 1);
        let local = filled(&one.port, 4096, Access::Local, 2);
        let work = Work::Write {
            from: vec![local.slice_at(local.address(), 8).unwrap()],
            remote_address: target.address() as u64 + offset as u64,
            remote_key: target.remote_key() + wrong_key,
        };
        one.pair.post(vec![Request { id: 1, work, signaled: false }]).unwrap();
        assert_eq!(results(&poll(&mut one)), [(1, Err(Status::RemoteAccess))]);
        assert_eq!(results(&poll(&mut other)), [(3, Err(Status::Flushed))]);
        assert_eq!(content(&target, 4096), [1; 4096]);
    }
}

#[test]
fn a_message_too_long_for_its_receive_fails_both_sides() {
    let network = FakeNetwork::new();
    let [mut one, mut other] = sides(&network, &QueuePairConfig::default());
    other.pair.post_receive(3, None).unwrap();
    let mut message = buffers(&one.port, 64, 1).remove(0);
    assert!(message.write(b"1"));
    one.pair.post(vec![send(1, Some(message), None)]).unwrap();
    assert_eq!(results(&poll(&mut one)), [(1, Err(Status::RemoteInvalidRequest))]);
    assert_eq!(results(&poll(&mut other)), [(3, Err(Status::LocalLength))]);
}

#[test]
fn failing_flushes_in_order_and_the_peer_is_not_answered() {
    let network = FakeNetwork::new();
    let [mut one, mut other] = sides(&network, &QueuePairConfig::default());
    network.allow(Some(0));
    one.pair.post_receive(5, None).unwrap();
    one.pair.post(vec![send(1, None, None), send(2, None, None)]).unwrap();
    assert!(poll(&mut one).is_empty());
    one.pair.fail().unwrap();
    let flushed = Err(Status::Flushed);
    assert_eq!(results(&poll(&mut one)), [(1, flushed), (2, flushed), (5, flushed)]);
    assert!(matches!(one.pair.post(vec![send(3, None, None)]), Err(Error::Broken)));
    network.allow(None);
    other.pair.post(vec![send(4, None, None)]).unwrap();
    assert_eq!(results(&poll(&mut other)), [(4, Err(Status::RetriesExceeded))]);
}

#[test]
fn memory_is_held_until_completion_or_destruction() {
    let network = FakeNetwork::new();
    let [mut one, other] = sides(&network, &remote());
    network.allow(Some(0));
    let target = filled(&other.port, 4096, Access::Remote, 1);
    let local = filled(&one.port, 4096, Access::Local, 2);
    let write = |id, local: &Arc<Region>| Request {
        id,
        work: Work::Write {
            from: vec![local.slice_at(local.address(), 8).unwrap()],
            remote_address: target.address() as u64,
            remote_key: target.remote_key(),
        },
        signaled: true,
    };
    one.pair.post(vec![write(1, &local), write(2, &local)]).unwrap();
    drop(local);
    assert_eq!(network.registered_bytes(), 8192, "two requests hold the region");
    network.allow(Some(1));
    assert_eq!(results(&poll(&mut one)), [(1, Ok(()))]);
    assert_eq!(network.registered_bytes(), 8192, "one request holds it");
    drop(one);
    assert_eq!(network.registered_bytes(), 4096, "the queue pair is gone");
}

#[test]
fn limits_refuse_whole_posts() {
    let network = FakeNetwork::new();
    let config = QueuePairConfig { send_depth: 2, receive_depth: 1, segments_max: 1, ..remote() };
    let [mut one, _other] = sides(&network, &config);
    network.allow(Some(0));
    let three = (0..3).map(|id| send(id, None, None)).collect();
    assert!(matches!(one.pair.post(three), Err(Error::QueueFull { wanted: 3, used: 0, depth: 2 })));
    let local = filled(&one.port, 4096, Access::Local, 2);
    let slice = || local.slice_at(local.address(), 8).unwrap();
    let work = Work::Read { into: vec![slice(), slice()], remote_address: 0, remote_key: 0 };
    let request = Request { id: 1, work, signaled: true };
    assert!(matches!(one.pair.post(vec![request]), Err(Error::TooLarge { segments: 2, .. })));
    assert_eq!(one.pair.send_room(), 2);
    one.pair.post_receive(1, None).unwrap();
    assert!(matches!(one.pair.post_receive(2, None), Err(Error::QueueFull { depth: 1, .. })));
}

#[test]
fn an_armed_queue_makes_one_event() {
    use std::os::fd::AsRawFd;
    let network = FakeNetwork::new();
    let [mut one, mut other] = sides(&network, &QueuePairConfig::default());
    let readable = |side: &Side| {
        let mut fd = libc::pollfd { fd: side.pair.event_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor; returns at once.
        unsafe { libc::poll(&mut fd, 1, 0) == 1 }
    };
    other.pair.post_receive(1, None).unwrap();
    other.pair.post_receive(2, None).unwrap();
    one.pair.post(vec![send(1, None, None)]).unwrap();
    assert!(!readable(&other), "not armed");
    other.pair.arm().unwrap();
    assert!(!readable(&other), "what is there causes no event");
    one.pair.post(vec![send(2, None, None)]).unwrap();
    assert!(readable(&other));
    other.pair.arm().unwrap();
    assert!(!readable(&other));
    assert_eq!(poll(&mut other).len(), 2);
}
