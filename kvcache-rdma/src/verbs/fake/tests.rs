//! The rules that every provider keeps, and what only the fake can show.

use std::sync::Arc;

use super::*;
use crate::verbs::conformance::RULES;
use crate::verbs::{Completion, QueuePair, QueuePairConfig, Region, Request, Status, Work};

#[test]
fn the_fake_keeps_the_rules() {
    for rule in RULES {
        let network = FakeNetwork::new();
        (rule.check)(&network.port(), &network.port())
            .unwrap_or_else(|found| panic!("{}: {found}", rule.name));
        assert_eq!((network.registered_bytes(), network.queue_pairs()), (0, 0), "{}", rule.name);
    }
}

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

fn filled(port: &Port, bytes: usize, access: Access, fill: u8) -> Arc<Region> {
    let memory = Memory::allocate(bytes);
    // SAFETY: fresh memory of at least that length.
    unsafe { std::ptr::write_bytes(memory.address() as *mut u8, fill, bytes) };
    Arc::new(port.register(memory, access).unwrap())
}

fn poll(side: &mut Side) -> Vec<Completion> {
    let mut completions = Vec::new();
    side.pair.poll(&mut completions).unwrap();
    completions
}

fn send(id: u64) -> Request {
    Request { id, work: Work::Send { message: None, immediate: None }, signaled: true }
}

fn results(completions: &[Completion]) -> Vec<(u64, Result<(), Status>)> {
    completions.iter().map(|completion| (completion.id, completion.result)).collect()
}

#[test]
fn a_message_that_may_not_wait_fails() {
    let network = FakeNetwork::new();
    let impatient = QueuePairConfig { rnr_retries: 0, ..Default::default() };
    let [mut one, _other] = sides(&network, &impatient);
    one.pair.post(vec![send(1), send(2)]).unwrap();
    assert_eq!(results(&poll(&mut one)), [(1, Err(Status::RnrRetriesExceeded)), (2, Err(Status::Flushed))]);
    assert!(one.pair.is_failed());
}

#[test]
fn failing_flushes_in_order_and_the_peer_is_not_answered() {
    let network = FakeNetwork::new();
    let [mut one, mut other] = sides(&network, &QueuePairConfig::default());
    network.allow(Some(0));
    one.pair.post_receive(5, None).unwrap();
    one.pair.post(vec![send(1), send(2)]).unwrap();
    assert!(poll(&mut one).is_empty());
    one.pair.fail().unwrap();
    let flushed = Err(Status::Flushed);
    assert_eq!(results(&poll(&mut one)), [(1, flushed), (2, flushed), (5, flushed)]);
    assert!(matches!(one.pair.post(vec![send(3)]), Err(Error::Broken)));
    network.allow(None);
    other.pair.post(vec![send(4)]).unwrap();
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
    let three = (0..3).map(send).collect();
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

/// Of a post that a device has taken in part: what was taken runs on, and holds its memory until the queue pair goes.
#[test]
fn what_a_device_has_taken_of_a_post_keeps_its_memory() {
    for taken in 0..3 {
        let network = FakeNetwork::new();
        let [mut one, other] = sides(&network, &remote());
        let theirs = filled(&other.port, 4096, Access::Remote, 0);
        network.allow(Some(0));
        let write = |id: u64| {
            let ours = filled(&one.port, 4096, Access::Local, id as u8);
            let slice = ours.slice_at(ours.address(), 16).unwrap();
            let (remote_address, remote_key) = (theirs.address() as u64, theirs.remote_key());
            let work = Work::Write { from: vec![slice], remote_address, remote_key };
            Request { id, work, signaled: true }
        };
        let requests = vec![write(1), write(2), write(3)];
        network.cut_next_post(taken);
        assert!(matches!(one.pair.post(requests), Err(Error::Verb { .. })));
        assert!(one.pair.is_failed());
        assert_eq!(network.registered_bytes(), 4096 * (1 + taken), "regions of what was taken, and theirs");
        drop(one.pair);
        assert_eq!(network.registered_bytes(), 4096);
        drop((theirs, other));
    }
}
