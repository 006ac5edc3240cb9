//! The defects of AIBrix's watcher that a ring can have, each by its number in our reference.

use kvcache_core::ring::{RingDocument, SlotTable};

use super::rules_tests::{at, names, not_ready, options, published, ready, ring_of};
use super::*;

/// Defect 1: a member that held both the first and the last slot had all its ranges replaced by one that wraps, which
/// readers take for none. Two pods of AIBrix's lost half of their ring with 4 names of 6.
#[test]
fn defect_1_no_range_wraps_and_no_slot_is_lost() {
    for name in ["kvcache", "infinistore-pool", "a", "b", "c", "prod-cache"] {
        for count in 1..=8 {
            let pods: Vec<_> =
                (0..count).map(|n| RingPod { name: format!("{name}-{n}"), ..ready(n, 0) }).collect();
            let options = RingOptions { name: name.to_owned(), ..options(count) };
            let ring = decide(&pods, &PublishedRing::default(), &options, at(10));
            let read = RingDocument::from_json(ring.text().as_bytes()).expect("a document");
            // As AIBrix's reader does it: a range whose end is before its start has no slots.
            let slots = read.nodes.iter().flat_map(|node| node.slots.iter().flatten());
            let mut slots: Vec<u32> = slots.flat_map(|range| range.start..=range.end).collect();
            slots.sort_unstable();
            assert!(slots.into_iter().eq(0..4096), "{count} pods of {name}");
        }
    }
}

/// Defect 2: 41 pods panicked, because more members than partitions divided by zero.
#[test]
fn defect_2_a_ring_of_hundreds_is_made() {
    for count in [41, 64, 65, 500] {
        let pods: Vec<_> = (0..count)
            .map(|n| RingPod { host: Some(format!("10.0.{}.{}", n / 256, n % 256)), ..ready(n, 0) })
            .collect();
        let ring = decide(&pods, &PublishedRing::default(), &options(count), at(10));
        assert_eq!(ring.member_count(), count as usize);
        let names = names(&ring);
        let most = SlotTable::new(&names).expect("a ring").loads().into_iter().max().expect("members");
        assert!(most as f64 <= (1.1 * 4096.0 / f64::from(count)).max((4096.0 / f64::from(count)).ceil()));
    }
}

/// Defect 3: old and new nodes were compared without their addresses, so that a restarted pod was looked for where it
/// had been.
#[test]
fn defect_3_a_restarted_pod_is_published_with_its_new_address() {
    let before = ring_of(2);
    let restarted = RingPod { host: Some("10.0.7.7".to_owned()), ..ready(1, 100) };
    let ring = decide(&[ready(0, 0), restarted], &published(&before), &options(2), at(100));
    assert_eq!(
        (ring.change, ring.version(), ring.readdressed.clone()),
        (RingChange::Ring, 2, vec!["kv-1".to_owned()])
    );
    assert_eq!(ring.document().nodes[1].address.to_string(), "10.0.7.7:12345");
    assert_eq!(ring.document().nodes[1].slots, before.document().nodes[1].slots);
}

/// Defect 4: with no pod ready nothing was written, and clients kept asking servers that were gone.
#[test]
fn defect_4_a_ring_of_nobody_is_published() {
    let away = decide(&[], &published(&ring_of(2)), &options(2), at(100));
    assert_eq!(away.member_count(), 2);
    let empty = decide(&[], &published(&away), &options(2), at(160));
    assert_eq!(empty.text(), r#"{"nodes":[],"version":2}"#);
    assert_eq!(empty.change, RingChange::Ring);
}

/// Defect 5: pods entered when they ran, before they served.
#[test]
fn defect_5_a_pod_that_does_not_serve_yet_does_not_enter() {
    let ring = decide(&[ready(0, 0), not_ready(1)], &PublishedRing::default(), &options(2), at(1_000_000));
    assert_eq!((names(&ring), ring.look_again), (vec!["kv-0".to_owned()], None));
}

/// Defect 16: every bounce of a pod remapped keys, 2N times in a rolling restart of N pods.
#[test]
fn defect_16_a_rolling_restart_moves_no_slot() {
    let count = 5;
    let first = ring_of(count);
    let mut ring = first.clone();
    let mut pods: Vec<_> = (0..count).map(|n| ready(n, 0)).collect();
    let mut now = 100;
    for restarting in (0..count).rev() {
        let index = restarting as usize;
        // It ends, is gone, is made anew elsewhere, starts, and serves after 50 seconds.
        let gone = pods.remove(index);
        for (after, pod) in
            [(5, None), (15, Some(not_ready(restarting))), (50, Some(ready(restarting, now + 50)))]
        {
            let mut pods = pods.clone();
            pods.extend(pod.map(|pod| RingPod { host: Some(format!("10.0.1.{restarting}")), ..pod }));
            ring = decide(&pods, &published(&ring), &options(count), at(now + after));
            assert_eq!((ring.moved_slots, ring.member_count()), (0, count as usize));
        }
        let host = Some(format!("10.0.1.{restarting}"));
        pods.insert(index, RingPod { host, state: RingPodState::Ready(at(now + 50)), ..gone });
        now += 60;
        ring = decide(&pods, &published(&ring), &options(count), at(now));
    }
    assert_eq!(ring.version(), first.version() + u64::from(count), "one new address each");
    let slots = |ring: &RingDecision| -> Vec<_> {
        ring.document().nodes.iter().map(|node| node.slots.clone()).collect()
    };
    assert_eq!(slots(&ring), slots(&first));
}
