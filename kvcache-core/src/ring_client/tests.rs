//! Named situations. `random_tests.rs` has the schedules that nobody thought of.

use super::*;
use crate::remote::{RemoteKey, RemoteOp, RemoteOutcome};

const SECOND: Duration = Duration::from_secs(1);
const NOW: Duration = Duration::from_secs(100);

/// Block `n` is held by the servers `n % count`, `n % count + 1` and so on.
pub(super) struct InTurn(pub(super) Vec<ServerId>);

impl Placement for InTurn {
    fn holders(&self, block: &BlockKey, replicas: usize, holder: &mut dyn FnMut(ServerId)) {
        let count = self.0.len();
        for replica in 0..replicas.min(count) {
            holder(self.0[(block.0[0] as usize + replica) % count]);
        }
    }
}

pub(super) fn client_of(servers: u32, config: RingClientConfig) -> RingClient {
    let mut client = RingClient::new(config);
    set_members(&mut client, &(0..servers).collect::<Vec<_>>());
    client
}

pub(super) fn set_members(client: &mut RingClient, servers: &[u32]) {
    let ids: Vec<ServerId> = servers.iter().map(|id| ServerId(*id)).collect();
    client.set_members(Box::new(InTurn(ids.clone())), &ids);
}

pub(super) fn transfer(ticket: u64, op: RemoteOp, block: u8) -> RemoteTransfer {
    let key = RemoteKey { space: RemoteSpace([1; 16]), block: BlockKey([block; 16]) };
    RemoteTransfer { ticket, op, key, address: 4096 * (ticket as usize + 1), bytes: 100 }
}

fn actions(client: &mut RingClient) -> Vec<Action> {
    let mut actions = Vec::new();
    client.take_actions(&mut actions);
    actions
}

/// Server, request, operation and number of items of what is sent; anything else fails.
fn sent(client: &mut RingClient) -> Vec<(u32, RequestId, RequestOp, usize)> {
    let sends = actions(client).into_iter().map(|action| match action {
        Action::Send { server, request, op, items, .. } => (server.0, request, op, items.len()),
        other => panic!("{other:?}"),
    });
    sends.collect()
}

fn ends(client: &mut RingClient) -> Vec<(u64, RemoteOutcome)> {
    let mut ends = Vec::new();
    client.take_ends(&mut ends);
    ends.iter().map(|end| (end.ticket, end.outcome)).collect()
}

fn answer(client: &mut RingClient, request: RequestId, result: ItemResult, now: Duration) {
    client.ended(&[ItemEnd { request, item: 0, result }], now);
}

fn failed(reason: RemoteFailure) -> RemoteOutcome {
    RemoteOutcome::Failed(reason)
}

#[test]
fn values_for_one_server_travel_together_within_bounds() {
    let config = RingClientConfig { batch_items_max: 4, batch_bytes_max: 300, ..Default::default() };
    let mut client = client_of(2, config);
    // Six for each server: 300 bytes are three of 100.
    let batch: Vec<_> = (0..12).map(|n| transfer(n, RemoteOp::Get, n as u8)).collect();
    client.submit(&batch, NOW + SECOND, NOW);
    let mut sent: Vec<_> = sent(&mut client).iter().map(|(server, _, _, items)| (*server, *items)).collect();
    sent.sort_unstable();
    assert_eq!(sent, [(0, 3), (0, 3), (1, 3), (1, 3)]);
    // A value above the bound travels alone.
    let large = RemoteTransfer { bytes: 1000, ..transfer(20, RemoteOp::Put, 0) };
    client.submit(&[transfer(21, RemoteOp::Put, 0), large], NOW + SECOND, NOW);
    let sent: Vec<_> = self::sent(&mut client).iter().map(|sent| sent.3).collect();
    assert_eq!(sent, [1, 1]);
}

#[test]
fn a_get_asks_one_holder_after_the_other() {
    let mut client = client_of(3, RingClientConfig { replicas: 3, ..Default::default() });
    let reasons = [
        ItemResult::Missing,
        ItemResult::Failed(RemoteFailure::Corrupt),
        ItemResult::Done,
        ItemResult::Missing,
    ];
    for (results, outcome) in [
        (&[reasons[2]][..], RemoteOutcome::Done),
        (&[reasons[0], reasons[1], reasons[2]][..], RemoteOutcome::Done),
        (&[reasons[0], reasons[0], reasons[0]][..], RemoteOutcome::Missing),
        (&[reasons[0], reasons[1], reasons[3]][..], failed(RemoteFailure::Corrupt)),
    ] {
        client.submit(&[transfer(1, RemoteOp::Get, 1)], NOW + SECOND, NOW);
        for (asked, result) in results.iter().enumerate() {
            assert_eq!(ends(&mut client), []);
            let sent = sent(&mut client);
            assert_eq!(sent.len(), 1, "one at a time");
            assert_eq!(sent[0].0, (1 + asked as u32) % 3);
            answer(&mut client, sent[0].1, *result, NOW);
        }
        assert_eq!(ends(&mut client), [(1, outcome)]);
        assert_eq!(sent(&mut client), []);
    }
}

#[test]
fn a_silent_holder_leaves_time_for_the_next() {
    let config = RingClientConfig { replicas: 2, silence_max: 100 * SECOND, ..Default::default() };
    let mut client = client_of(2, config);
    client.submit(&[transfer(1, RemoteOp::Get, 0)], NOW + SECOND, NOW);
    let first = sent(&mut client)[0].1;
    client.tick(NOW + SECOND / 2);
    assert_eq!(actions(&mut client), [Action::Abandon { server: ServerId(0), request: first, item: None }]);
    assert_eq!(ends(&mut client), [], "its memory may still be written");
    let out_of_use = NOW + SECOND * 6 / 10;
    client.request_failed(first, RemoteFailure::Cancelled, out_of_use);
    let second = sent(&mut client)[0];
    assert_eq!(second.0, 1);
    answer(&mut client, second.1, ItemResult::Missing, out_of_use);
    assert_eq!(ends(&mut client), [(1, failed(RemoteFailure::TimedOut))], "it may be at the first");
}

#[test]
fn a_put_goes_to_all_holders_and_one_is_enough() {
    let refused = ItemResult::Failed(RemoteFailure::Refused);
    for (first, second, outcome) in [
        (ItemResult::Done, ItemResult::Done, RemoteOutcome::Done),
        (refused, ItemResult::Done, RemoteOutcome::Done),
        (ItemResult::Done, refused, RemoteOutcome::Done),
        (refused, refused, failed(RemoteFailure::Refused)),
    ] {
        let mut client = client_of(3, RingClientConfig { replicas: 2, ..Default::default() });
        client.submit(&[transfer(1, RemoteOp::Put, 2)], NOW + SECOND, NOW);
        let sent = sent(&mut client);
        assert_eq!(sent.iter().map(|sent| sent.0).collect::<Vec<_>>(), [0, 2]);
        answer(&mut client, sent[1].1, first, NOW);
        assert_eq!(ends(&mut client), [], "the other still reads the memory");
        answer(&mut client, sent[0].1, second, NOW);
        assert_eq!(ends(&mut client), [(1, outcome)]);
        let stats = client.stats();
        assert_eq!(stats.put.ended(), 1);
        assert_eq!(stats.servers.iter().map(|server| server.put.ended()).sum::<u64>(), 2);
    }
}

/// A server that stops answering costs one timeout, whatever is in flight and whatever comes; a probe brings it back.
#[test]
fn a_dead_server_costs_one_timeout() {
    let mut client = client_of(1, RingClientConfig { silence_max: SECOND, ..Default::default() });
    for ticket in 0..5 {
        client.submit(&[transfer(ticket, RemoteOp::Get, 0)], NOW + 60 * SECOND, NOW);
    }
    client.ask(9, &[RemoteSpace([1; 16])], &[BlockKey([7; 16])], NOW + 60 * SECOND, NOW);
    let in_flight = sent(&mut client);
    assert_eq!(client.next_tick(), Some(NOW + SECOND));
    client.tick(NOW + SECOND);
    let mut answers = Vec::new();
    client.take_answers(&mut answers);
    assert_eq!(answers, [PresenceAnswer { question: 9, present: vec![false] }]);
    assert_eq!(actions(&mut client).len(), in_flight.len(), "all are abandoned");
    for (_, request, ..) in in_flight {
        client.request_failed(request, RemoteFailure::Cancelled, NOW + SECOND);
    }
    let timed_out = failed(RemoteFailure::TimedOut);
    assert_eq!(ends(&mut client), (0..5).map(|ticket| (ticket, timed_out)).collect::<Vec<_>>());

    // From now on it is a miss at once.
    client.submit(&[transfer(10, RemoteOp::Get, 0)], NOW + 60 * SECOND, NOW + SECOND);
    assert_eq!(ends(&mut client), [(10, failed(RemoteFailure::Unreachable))]);
    assert_eq!(actions(&mut client), []);
    let mut now = client.next_tick().unwrap();
    client.tick(now);
    let probe = sent(&mut client);
    assert_eq!((probe.len(), probe[0].2), (1, RequestOp::Probe));
    assert_eq!(client.stats().servers[0].breaker, BreakerState::HalfOpen);
    client.submit(&[transfer(11, RemoteOp::Get, 0)], now + SECOND, now);
    assert_eq!(
        ends(&mut client),
        [(11, failed(RemoteFailure::Unreachable))],
        "the probe is not answered yet"
    );
    // The probe times out, the next one does not.
    now += SECOND;
    client.tick(now);
    assert!(matches!(actions(&mut client)[..], [Action::Abandon { .. }]));
    client.request_failed(probe[0].1, RemoteFailure::Cancelled, now);
    while sent(&mut client).is_empty() {
        now = client.next_tick().unwrap();
        client.tick(now);
        assert!(now < NOW + 10 * SECOND, "no probe");
        if client.stats().servers[0].breaker == BreakerState::HalfOpen {
            let probe = sent(&mut client)[0].1;
            answer(&mut client, probe, ItemResult::Missing, now);
            break;
        }
    }
    assert_eq!(client.stats().servers[0].breaker, BreakerState::Closed);
    client.submit(&[transfer(12, RemoteOp::Get, 0)], now + SECOND, now);
    assert_eq!(sent(&mut client).len(), 1);
}

#[test]
fn failures_in_a_row_open_the_breaker_and_a_slow_server_is_not_dead() {
    let mut client =
        client_of(1, RingClientConfig { failures_max: 2, silence_max: 60 * SECOND, ..Default::default() });
    let mut now = NOW;
    let breaker = |client: &RingClient| client.stats().servers[0].breaker;
    // Two at the same moment are one failure.
    for ticket in 0..2 {
        client.submit(&[transfer(ticket, RemoteOp::Get, 0)], now + SECOND, now);
    }
    let late = sent(&mut client);
    now += SECOND;
    client.tick(now);
    late.iter().for_each(|late| client.request_failed(late.1, RemoteFailure::Cancelled, now));
    assert_eq!(breaker(&client), BreakerState::Closed);
    // Something is heard of it: no failure.
    actions(&mut client);
    client.submit(&[transfer(3, RemoteOp::Get, 0)], now + SECOND, now);
    client.heard(ServerId(0), now + SECOND / 2);
    now += SECOND;
    client.tick(now);
    assert_eq!(breaker(&client), BreakerState::Closed);
    client.submit(&[transfer(4, RemoteOp::Get, 0)], now + SECOND, now);
    now += SECOND;
    client.tick(now);
    assert_eq!(breaker(&client), BreakerState::Open);
}

#[test]
fn a_refused_connection_opens_the_breaker_and_a_lost_one_counts() {
    let mut client = client_of(2, RingClientConfig { failures_max: 2, ..Default::default() });
    client.connection_fault(ServerId(0), ConnectionFault::Refused, NOW);
    client.connection_fault(ServerId(1), ConnectionFault::Lost, NOW);
    let states =
        |client: &RingClient| client.stats().servers.iter().map(|server| server.breaker).collect::<Vec<_>>();
    assert_eq!(states(&client), [BreakerState::Open, BreakerState::Closed]);
    client.connection_fault(ServerId(1), ConnectionFault::Lost, NOW);
    assert_eq!(states(&client), [BreakerState::Open, BreakerState::Open]);
}

#[test]
fn what_does_not_fit_ends_at_once_and_puts_leave_room_for_gets() {
    let config = RingClientConfig { server_items_max: 4, bytes_max: 700, ..Default::default() };
    let mut client = client_of(2, config);
    let overloaded = failed(RemoteFailure::Overloaded);
    let puts: Vec<_> = (0..3).map(|ticket| transfer(ticket, RemoteOp::Put, 0)).collect();
    client.submit(&puts, NOW + SECOND, NOW);
    assert_eq!(ends(&mut client), [(2, overloaded)], "half of four");
    let gets: Vec<_> = (10..13).map(|ticket| transfer(ticket, RemoteOp::Get, 0)).collect();
    client.submit(&gets, NOW + SECOND, NOW);
    assert_eq!(ends(&mut client), [(12, overloaded)]);
    // The other server has room, in all there is some for three more.
    let gets: Vec<_> = (20..24).map(|ticket| transfer(ticket, RemoteOp::Get, 1)).collect();
    client.submit(&gets, NOW + SECOND, NOW);
    assert_eq!(ends(&mut client), [(23, overloaded)]);
    let request = sent(&mut client)[0].1;
    answer(&mut client, request, ItemResult::Done, NOW);
    client.submit(&[transfer(30, RemoteOp::Get, 1)], NOW + SECOND, NOW);
    assert_eq!(ends(&mut client), [(0, RemoteOutcome::Done)], "there is room again");
}

#[test]
fn a_cancelled_transfer_ends_when_its_memory_is_out_of_use() {
    let mut client = client_of(2, RingClientConfig { replicas: 2, ..Default::default() });
    let batch = [transfer(1, RemoteOp::Get, 0), transfer(2, RemoteOp::Get, 0)];
    client.submit(&batch, NOW + SECOND, NOW);
    let request = sent(&mut client)[0].1;
    client.cancel(&[2, 2, 77]);
    client.cancel(&[2]);
    assert_eq!(actions(&mut client), [Action::Abandon { server: ServerId(0), request, item: Some(1) }]);
    assert_eq!(ends(&mut client), []);
    let result = ItemResult::Failed(RemoteFailure::Cancelled);
    client.ended(&[ItemEnd { request, item: 1, result }], NOW);
    assert_eq!(
        ends(&mut client),
        [(2, failed(RemoteFailure::Cancelled))],
        "and the other holder is not asked"
    );
    answer(&mut client, request, ItemResult::Done, NOW);
    assert_eq!(ends(&mut client), [(1, RemoteOutcome::Done)]);
    client.cancel(&[1]);
    assert_eq!(actions(&mut client), []);
}

#[test]
fn members_change_under_load() {
    let mut client = client_of(2, RingClientConfig::default());
    client.submit(&[transfer(1, RemoteOp::Get, 1), transfer(2, RemoteOp::Put, 0)], NOW + SECOND, NOW);
    let first = sent(&mut client);
    set_members(&mut client, &[0, 2]);
    assert_eq!(actions(&mut client), [], "server 1 still owes an answer");
    client.submit(&[transfer(3, RemoteOp::Get, 1)], NOW + SECOND, NOW);
    assert_eq!(sent(&mut client)[0].0, 2);
    let at_1 = first.iter().find(|sent| sent.0 == 1).unwrap().1;
    answer(&mut client, at_1, ItemResult::Done, NOW);
    assert_eq!(ends(&mut client), [(1, RemoteOutcome::Done)]);
    assert_eq!(actions(&mut client), [Action::Retire { server: ServerId(1) }]);
    // Nobody is left: what is in flight completes, what comes is unreachable.
    set_members(&mut client, &[]);
    client.submit(&[transfer(4, RemoteOp::Put, 1)], NOW + SECOND, NOW);
    assert_eq!(ends(&mut client), [(4, failed(RemoteFailure::Unreachable))]);
    client.ask(5, &[RemoteSpace([1; 16])], &[BlockKey([7; 16]); 3], NOW + SECOND, NOW);
    let mut answers = Vec::new();
    client.take_answers(&mut answers);
    assert_eq!(answers, [PresenceAnswer { question: 5, present: vec![false; 3] }]);
    assert_eq!(client.stats().transfers_open, 2);
}

#[test]
fn a_server_that_comes_back_is_asked_again() {
    let mut client = client_of(1, RingClientConfig::default());
    client.submit(&[transfer(1, RemoteOp::Put, 0)], NOW + SECOND, NOW);
    client.connection_fault(ServerId(0), ConnectionFault::Refused, NOW);
    set_members(&mut client, &[]);
    set_members(&mut client, &[0]);
    actions(&mut client);
    client.submit(&[transfer(2, RemoteOp::Put, 0)], NOW + SECOND, NOW);
    assert_eq!(sent(&mut client).len(), 1);
}

#[test]
fn presence_is_one_request_a_server_and_every_shard_counts() {
    let mut client = client_of(3, RingClientConfig::default());
    let spaces = [RemoteSpace([1; 16]), RemoteSpace([2; 16])];
    let blocks: Vec<BlockKey> = (0..30).map(|block| BlockKey([block; 16])).collect();
    client.ask(1, &spaces, &blocks, NOW + SECOND, NOW);
    let sent: Vec<_> = actions(&mut client)
        .into_iter()
        .map(|action| match action {
            Action::Send { op: RequestOp::Exists, server, request, items, .. } => (server, request, items),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sent.len(), 3);
    let mut answers = Vec::new();
    for (server, request, items) in sent {
        assert_eq!(items.len(), 20);
        client.take_answers(&mut answers);
        assert_eq!(answers, []);
        let has = |item: &Item| {
            assert_eq!(u32::from(item.key.block.0[0]) % 3, server.0);
            // Block 4 lacks its second shard, block 5 both.
            item.key.block.0[0] != 5 && !(item.key.block.0[0] == 4 && item.key.space == spaces[1])
        };
        let ends: Vec<ItemEnd> = (0..)
            .zip(&items)
            .map(|(position, item)| ItemEnd {
                request,
                item: position,
                result: if has(item) { ItemResult::Done } else { ItemResult::Missing },
            })
            .collect();
        client.ended(&ends, NOW);
    }
    client.take_answers(&mut answers);
    let present = (0..30).map(|block| block != 4 && block != 5).collect();
    assert_eq!(answers, [PresenceAnswer { question: 1, present }]);
    let stats = client.stats();
    assert_eq!((stats.questions, stats.blocks_present, stats.blocks_absent), (1, 28, 2));
}

#[test]
fn a_value_of_no_bytes_is_refused_and_what_ended_twice_is_counted() {
    let mut client = client_of(1, RingClientConfig::default());
    client.submit(&[RemoteTransfer { bytes: 0, ..transfer(1, RemoteOp::Put, 0) }], NOW + SECOND, NOW);
    client.submit(&[RemoteTransfer { bytes: 0, ..transfer(2, RemoteOp::Delete, 0) }], NOW + SECOND, NOW);
    assert_eq!(ends(&mut client), [(1, failed(RemoteFailure::Refused))]);
    let request = sent(&mut client)[0].1;
    for _ in 0..2 {
        answer(&mut client, request, ItemResult::Missing, NOW);
    }
    client.request_failed(RequestId(999), RemoteFailure::Unreachable, NOW);
    assert_eq!(ends(&mut client), [(2, RemoteOutcome::Missing)]);
    assert_eq!(client.stats().stale_ends, 2);
    client.submit(&[transfer(3, RemoteOp::Get, 0)], NOW, NOW);
    assert_eq!(ends(&mut client), [(3, failed(RemoteFailure::TimedOut))], "its time was up before");
}
