//! Each rule of the ring by itself, and what a decision says about it.

use std::time::Duration;

use jiff::Timestamp;
use kvcache_core::ring::MEMBERS_MAX;

use super::*;

pub(super) const START: i64 = 1_795_325_000_000;

/// A moment of the tests, in seconds from their start.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millisecond(START + seconds * 1000).expect("a time")
}

pub(super) fn options(replicas: u32) -> RingOptions {
    RingOptions {
        name: "kv".to_owned(),
        replicas,
        port: 12345,
        domain: "kv-headless-service.default.svc".to_owned(),
        min_ready: Duration::from_secs(10),
        not_ready_grace: Duration::from_secs(60),
    }
}

pub(super) fn ready(number: u32, since: i64) -> RingPod {
    let host = Some(format!("10.0.0.{number}"));
    RingPod { name: format!("kv-{number}"), host, port: None, state: RingPodState::Ready(at(since)) }
}

pub(super) fn not_ready(number: u32) -> RingPod {
    RingPod { state: RingPodState::NotReady, ..ready(number, 0) }
}

/// What a decision leaves for the next one: nothing but the text.
pub(super) fn published(decision: &RingDecision) -> PublishedRing {
    PublishedRing::read(Some(&decision.text()), 0)
}

pub(super) fn names(decision: &RingDecision) -> Vec<String> {
    decision.document().nodes.iter().map(|node| node.name.clone()).collect()
}

fn addresses(decision: &RingDecision) -> Vec<String> {
    decision.document().nodes.iter().map(|node| node.address.to_string()).collect()
}

/// A ring of `count` pods that are ready since the start, decided at second 10.
pub(super) fn ring_of(count: u32) -> RingDecision {
    let pods: Vec<_> = (0..count).map(|n| ready(n, 0)).collect();
    let ring = decide(&pods, &PublishedRing::default(), &options(count), at(10));
    assert_eq!(ring.member_count(), count as usize);
    ring
}

#[test]
fn a_pod_enters_when_it_has_been_ready_for_long_enough() {
    let pods = [ready(0, 0), ready(1, 5), not_ready(2)];
    let options = options(3);
    let none = decide(&pods, &PublishedRing::default(), &options, at(9));
    assert_eq!((names(&none), none.version(), none.change), (vec![], 1, RingChange::Ring));
    assert_eq!(none.look_again, Some(at(10)));
    let one = decide(&pods, &published(&none), &options, at(10));
    assert_eq!((names(&one), one.version(), one.look_again), (vec!["kv-0".to_owned()], 2, Some(at(15))));
    assert_eq!(
        (one.entered.clone(), one.moved_slots),
        (vec!["kv-0".to_owned()], 0),
        "nobody owned a slot before"
    );
    let two = decide(&pods, &published(&one), &options, at(15));
    assert_eq!((names(&two).len(), two.version(), two.look_again), (2, 3, None));
    assert!((1900..=2200).contains(&two.moved_slots), "{}", two.moved_slots);
    // Nothing happens, nothing is written.
    let same = decide(&pods, &published(&two), &options, at(1000));
    assert_eq!((same.change, same.version(), same.text()), (RingChange::None, 3, two.text()));
}

#[test]
fn a_member_that_is_away_keeps_its_slots_for_the_grace_and_says_so() {
    let options = options(2);
    let before = ring_of(2);
    let away = decide(&[ready(0, 0), not_ready(1)], &published(&before), &options, at(100));
    assert_eq!((away.change, away.version(), away.moved_slots), (RingChange::Memory, 1, 0));
    assert_eq!((away.away(), away.look_again), (vec!["kv-1"], Some(at(160))));
    assert!(
        away.text().ends_with(r#""version":1,"away_since_ms":{"kv-1":1795325100000}}"#),
        "{}",
        away.text()
    );
    // Still away, another operator: it is known since when, and nothing is to be written.
    let later = decide(&[ready(0, 0)], &published(&away), &options, at(159));
    assert_eq!((later.change, later.look_again), (RingChange::None, Some(at(160))));
    let left = decide(&[ready(0, 0)], &published(&later), &options, at(160));
    assert_eq!(
        (names(&left), left.left.clone(), left.version()),
        (vec!["kv-0".to_owned()], vec!["kv-1".to_owned()], 2)
    );
    assert!(!left.text().contains(AWAY_FIELD) && left.moved_slots > 1900);
    // Back: everything as it was.
    let back = decide(&[ready(0, 0), ready(1, 200)], &published(&left), &options, at(210));
    assert_eq!((&back.document().nodes, back.version()), (&before.document().nodes, 3));
}

#[test]
fn a_server_that_crashes_again_and_again_has_one_grace() {
    let options = options(2);
    let mut ring = decide(&[ready(0, 0), not_ready(1)], &published(&ring_of(2)), &options, at(100));
    for crash in 1..=6 {
        let back = at(100 + 10 * crash - 5);
        ring = decide(&[ready(0, 0), ready(1, 100 + 10 * crash - 5)], &published(&ring), &options, back);
        assert_eq!(ring.away(), ["kv-1"], "ready, but not for long");
        ring = decide(&[ready(0, 0), not_ready(1)], &published(&ring), &options, at(100 + 10 * crash));
    }
    assert_eq!(ring.left, ["kv-1"]);
}

/// Ready again just in time: the grace may be over before it has been ready for long, and it stays.
#[test]
fn a_member_that_is_back_within_the_grace_stays() {
    let options = options(2);
    let away = decide(&[ready(0, 0), not_ready(1)], &published(&ring_of(2)), &options, at(100));
    let pods = [ready(0, 0), ready(1, 159)];
    let back = decide(&pods, &published(&away), &options, at(165));
    assert_eq!((back.change, back.away(), back.look_again), (RingChange::None, vec!["kv-1"], Some(at(169))));
    let settled = decide(&pods, &published(&back), &options, at(169));
    assert_eq!((settled.change, settled.version(), settled.away().len()), (RingChange::Memory, 1, 0));
}

#[test]
fn what_is_scaled_in_drained_or_renamed_leaves_at_once() {
    let before = ring_of(3);
    let pods = [ready(0, 0), ready(1, 0), ready(2, 0)];
    let scaled_in = decide(&pods, &published(&before), &options(2), at(100));
    assert_eq!((names(&scaled_in), scaled_in.look_again), (vec!["kv-0".to_owned(), "kv-1".to_owned()], None));
    let drained = [ready(0, 0), RingPod { state: RingPodState::Draining, ..ready(1, 0) }, ready(2, 0)];
    let drained = decide(&drained, &published(&before), &options(3), at(100));
    assert_eq!(drained.left, ["kv-1"]);
    // The StatefulSet has another name, or someone's pod has our labels.
    let renamed = RingOptions { name: "cache".to_owned(), ..options(3) };
    let renamed = decide(&pods, &published(&before), &renamed, at(100));
    assert_eq!((names(&renamed).len(), renamed.left.len()), (0, 3));
    for stranger in ["kv-03", "kv-3", "kv-", "kv-0-0", "kv"] {
        let pod = RingPod { name: stranger.to_owned(), ..ready(9, 0) };
        let ring = decide(&[ready(0, 0), pod], &PublishedRing::default(), &options(3), at(100));
        assert_eq!(names(&ring), ["kv-0"], "{stranger}");
    }
}

#[test]
fn no_pods_are_wanted() {
    let none = decide(&[ready(0, 0)], &published(&ring_of(1)), &options(0), at(100));
    assert!(none.text().starts_with(r#"{"nodes":[],"version":2"#), "{}", none.text());
    assert_eq!(none.moved_slots, 4096);
}

#[test]
fn a_pod_without_an_address_is_not_ready() {
    let nowhere = RingPod { host: None, ..ready(1, 0) };
    let bad = RingPod { host: Some("not an address".to_owned()), ..ready(2, 0) };
    let ring = decide(&[ready(0, 0), nowhere.clone(), bad], &PublishedRing::default(), &options(3), at(100));
    assert_eq!(names(&ring), ["kv-0"]);
    // A member keeps the address that it had.
    let ring = decide(&[ready(0, 0), nowhere], &published(&ring_of(2)), &options(2), at(100));
    assert_eq!(
        (addresses(&ring), ring.away()),
        (vec!["10.0.0.0:12345".to_owned(), "10.0.0.1:12345".to_owned()], vec!["kv-1"])
    );
}

/// Readers refuse a list in which two members have one address.
#[test]
fn an_address_belongs_to_the_pod_that_became_ready_last() {
    let options = options(2);
    let stale = ready(0, 0);
    let heir = RingPod { host: stale.host.clone(), ..ready(1, 50) };
    let ring = decide(&[stale.clone(), heir.clone()], &PublishedRing::default(), &options, at(100));
    assert_eq!(
        (names(&ring), addresses(&ring)),
        (vec!["kv-1".to_owned()], vec!["10.0.0.0:12345".to_owned()])
    );
    // The one that lost it is a member: it keeps its slots under its own name, until it has another address.
    let ring = decide(&[stale, heir.clone()], &published(&ring_of(2)), &options, at(100));
    let own_name = "kv-0.kv-headless-service.default.svc:12345".to_owned();
    assert_eq!((addresses(&ring), ring.away()), (vec![own_name, "10.0.0.0:12345".to_owned()], vec!["kv-0"]));
    assert_eq!((ring.moved_slots, ring.version()), (0, 2));
    let back = RingPod { host: Some("10.0.0.9".to_owned()), ..ready(0, 120) };
    let ring = decide(&[back, heir], &published(&ring), &options, at(120));
    assert_eq!(
        (addresses(&ring), ring.readdressed.clone()),
        (vec!["10.0.0.9:12345".to_owned(), "10.0.0.0:12345".to_owned()], vec!["kv-0".to_owned()])
    );
}

#[test]
fn a_new_port_is_that_of_pods_that_have_it() {
    let new = RingOptions { port: 12346, ..options(2) };
    let [old, other] = [0, 1].map(|n| RingPod { port: Some(12345), ..ready(n, 0) });
    let ring = decide(&[old.clone(), other], &published(&ring_of(2)), &new, at(100));
    assert_eq!(ring.change, RingChange::None, "they listen where they did");
    let restarted = RingPod { port: Some(12346), ..ready(1, 100) };
    let ring = decide(&[old, restarted], &published(&ring), &new, at(100));
    assert_eq!(addresses(&ring), ["10.0.0.0:12345", "10.0.0.1:12346"]);
    assert_eq!((ring.readdressed.clone(), ring.moved_slots), (vec!["kv-1".to_owned()], 0));
}

/// Two members that are away and share an address, in a document that somebody edited.
#[test]
fn no_two_members_have_one_address() {
    let edited =
        r#"{"nodes":[{"name":"kv-0","addr":"h","port":1},{"name":"kv-1","addr":"h","port":1}],"version":4}"#;
    let ring = decide(&[], &PublishedRing::read(Some(edited), 0), &options(2), at(0));
    assert_eq!(addresses(&ring), ["h:1", "kv-1.kv-headless-service.default.svc:12345"]);
}

#[test]
fn clocks_that_step_back_cost_at_most_a_grace() {
    let options = options(2);
    let away = decide(&[ready(0, 0), not_ready(1)], &published(&ring_of(2)), &options, at(10_000));
    let pods = [ready(0, 0), not_ready(1)];
    let stepped = decide(&pods, &published(&away), &options, at(1_000));
    assert_eq!((stepped.change, stepped.look_again), (RingChange::Memory, Some(at(1_060))));
    assert_eq!(decide(&pods, &published(&stepped), &options, at(1_060)).left, ["kv-1"]);
}

#[test]
fn a_node_whose_clock_is_ahead_keeps_its_pods_out_for_a_moment_at_most() {
    let ring = |since| decide(&[ready(0, since)], &PublishedRing::default(), &options(1), at(100));
    assert_eq!((ring(105).member_count(), ring(105).look_again), (0, Some(at(115))));
    assert_eq!(ring(110).look_again, Some(at(120)));
    assert_eq!((ring(111).member_count(), ring(1_000_000).member_count()), (1, 1));
}

#[test]
fn what_is_published_and_cannot_be_read_is_replaced_by_a_later_version() {
    let pods = [ready(0, 0)];
    for text in ["", "{", "[]", r#"{"nodes":[{"name":"kv-0"}],"version":3}"#, r#"{"nodes":[],"version":-1}"#]
    {
        let published = PublishedRing::read(Some(text), 41);
        assert!(published.unreadable().is_some(), "{text}");
        let ring = decide(&pods, &published, &options(1), at(100));
        assert_eq!((ring.change, ring.version(), ring.member_count()), (RingChange::Ring, 42, 1), "{text}");
    }
    // The ring is as it should be, but elsewhere a later one was seen, or it has no version at all.
    let ring = ring_of(1);
    let behind = decide(&pods, &PublishedRing::read(Some(&ring.text()), 9), &options(1), at(100));
    assert_eq!((behind.change, behind.version()), (RingChange::Ring, 10));
    let without = ring.text().replace(r#","version":1"#, "");
    let without = decide(&pods, &PublishedRing::read(Some(&without), 0), &options(1), at(100));
    assert_eq!((without.change, without.version()), (RingChange::Ring, 1));
    // Only another way to write it: no new version.
    let spaced = ring.text().replace(',', ", ");
    let spaced = decide(&pods, &PublishedRing::read(Some(&spaced), 0), &options(1), at(100));
    assert_eq!((spaced.change, spaced.version(), spaced.text()), (RingChange::Memory, 1, ring.text()));
    // Slots that are not where they should be.
    let moved = ring.text().replace("4095", "4094");
    assert_eq!(decide(&pods, &PublishedRing::read(Some(&moved), 0), &options(1), at(100)).version(), 2);
    // The highest version that there is stays, and nothing panics.
    let last = ring.text().replace(r#""version":1"#, &format!(r#""version":{}"#, u64::MAX));
    assert_eq!(decide(&[], &PublishedRing::read(Some(&last), 0), &options(0), at(100)).version(), u64::MAX);
}

#[test]
fn an_operators_memory_that_somebody_spoiled_is_forgotten() {
    let ring = ring_of(2);
    for memory in ["7", r#"["kv-1"]"#, r#"{"kv-1":"today"}"#, r#"{"kv-1":9223372036854775807}"#, "null"] {
        let text = ring.text().replace(r#""version":1"#, &format!(r#""version":1,"away_since_ms":{memory}"#));
        let away = decide(&[ready(0, 0)], &PublishedRing::read(Some(&text), 0), &options(2), at(100));
        assert_eq!((away.away(), away.look_again), (vec!["kv-1"], Some(at(160))), "{memory}");
    }
}

/// An adopted ring of AIBrix: its members keep their names, and their slots are ours from then on.
#[test]
fn a_ring_that_aibrix_published_is_taken_over() {
    let theirs = r#"{"nodes":[{"name":"kv-0","addr":"10.0.0.0","port":12345,"slots":[{"start":4000,"end":99}]},
        {"name":"kv-1","addr":"10.0.0.1","port":12345,"slots":[{"start":100,"end":3999}]}],"version":57}"#;
    let pods = [ready(0, 95), ready(1, 95)];
    let ring = decide(&pods, &PublishedRing::read(Some(theirs), 0), &options(2), at(100));
    assert_eq!((ring.version(), ring.member_count(), ring.away().len()), (58, 2, 0));
}

#[test]
fn more_pods_than_slots_get_none() {
    let pods: Vec<_> = (0..MEMBERS_MAX as u32 + 5)
        .map(|n| RingPod { host: Some(format!("10.0.{}.{}", n / 256, n % 256)), ..ready(n, 0) })
        .collect();
    let ring = decide(&pods, &PublishedRing::default(), &options(u32::MAX), at(100));
    assert_eq!(ring.member_count(), MEMBERS_MAX);
}

/// Prints what a ring costs: `cargo test --release -p kvcache-operator --lib plan::ring::rules_tests::figures --
/// --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn figures() {
    fn ms<T>(mut work: impl FnMut() -> T) -> f64 {
        let begun = std::time::Instant::now();
        (0..200).for_each(|_| drop(work()));
        begun.elapsed().as_secs_f64() * 1000.0 / 200.0
    }
    for count in [3, 64, 500] {
        let host = |n: u32| Some(format!("10.0.{}.{}", n / 256, n % 256));
        let pods: Vec<_> = (0..count).map(|n| RingPod { host: host(n), ..ready(n, 0) }).collect();
        let ring = decide(&pods, &PublishedRing::default(), &options(count), at(10));
        let (text, read) = (ring.text(), published(&ring));
        let less = decide(&pods[1..], &PublishedRing::default(), &options(count), at(10));
        let less = published(&less);
        let change = ms(|| decide(&pods, &less, &options(count), at(100)).text());
        let reading = ms(|| PublishedRing::read(Some(&text), 0));
        let none = ms(|| decide(&pods, &read, &options(count), at(100)));
        assert_eq!(decide(&pods, &read, &options(count), at(100)).change, RingChange::None);
        println!(
            "{count} members, {} bytes: a member enters {change:.2} ms, the text is read {reading:.2} ms, \
             no change {none:.3} ms",
            text.len()
        );
    }
}
