//! Random histories of pods, against an oracle that goes through them second by second and keeps its own memory.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kvcache_core::ring::RingDocument;
use proptest::prelude::*;

use super::rules_tests::{START, at, options};
use super::*;

const MIN_READY: i64 = 10;
const GRACE: i64 = 60;

/// A pod's life: for how long it is down, and then ready, again and again; the address it has when it is ready.
#[derive(Clone, Debug)]
struct Life {
    periods: Vec<Period>,
}

#[derive(Clone, Debug)]
struct Period {
    down: i64,
    ready: i64,
    host: u8,
    /// While it is down there is no pod at all.
    gone: bool,
}

impl Life {
    fn pod(&self, number: usize, second: i64) -> Option<RingPod> {
        let mut start = 0;
        let mut last_host = None;
        for period in &self.periods {
            let ready = start + period.down;
            let end = ready + period.ready;
            let pod = |host: Option<u8>, state| RingPod {
                name: format!("kv-{number}"),
                host: host.map(|host| format!("10.0.0.{host}")),
                port: None,
                state,
            };
            if second < ready {
                return (!period.gone).then(|| pod(last_host, RingPodState::NotReady));
            }
            if second < end {
                return Some(pod(Some(period.host), RingPodState::Ready(at(ready))));
            }
            (start, last_host) = (end, Some(period.host));
        }
        None
    }
}

fn pods(lives: &[Life], second: i64) -> Vec<RingPod> {
    lives.iter().enumerate().filter_map(|(number, life)| life.pod(number, second)).collect()
}

/// Since when a pod serves: it is ready, and nobody got its address later.
fn serves_since(pods: &[RingPod], name: &str) -> Option<i64> {
    let since = |pod: &RingPod| match pod.state {
        RingPodState::Ready(since) => Some(since),
        _ => None,
    };
    let pod = pods.iter().find(|pod| pod.name == name)?;
    let own = since(pod)?;
    let lost = pods.iter().any(|other| {
        other.host == pod.host && since(other).is_some_and(|since| (since, other.name.as_str()) > (own, name))
    });
    (!lost).then(|| (own.as_millisecond() - START) / 1000)
}

/// Who is in the ring, and who is away since when.
#[derive(Default)]
struct Oracle {
    members: BTreeSet<String>,
    away: BTreeMap<String, i64>,
    settled_once: BTreeSet<String>,
}

impl Oracle {
    fn step(&mut self, pods: &[RingPod], names: &[String], second: i64) {
        for name in names {
            match serves_since(pods, name) {
                Some(since) if second - since >= MIN_READY => {
                    self.members.insert(name.clone());
                    self.settled_once.insert(name.clone());
                    self.away.remove(name);
                }
                Some(_) => {}
                None if self.members.contains(name) => {
                    let since = *self.away.entry(name.clone()).or_insert(second);
                    if second - since >= GRACE {
                        self.members.remove(name);
                        self.away.remove(name);
                    }
                }
                None => {}
            }
        }
    }
}

fn check(before: Option<&str>, ring: &RingDecision, now: Timestamp) -> Result<(), TestCaseError> {
    let nodes = &ring.document().nodes;
    let last = before.and_then(|text| RingDocument::from_json(text.as_bytes()).ok());
    let last = last.as_ref();
    let same = last.is_some_and(|last| last.nodes == *nodes);
    prop_assert_eq!(ring.change == RingChange::Ring, !same);
    prop_assert_eq!(ring.version(), last.and_then(|last| last.version).unwrap_or(0) + u64::from(!same));
    prop_assert_eq!(ring.change == RingChange::None, before == Some(&*ring.text()));
    prop_assert!(ring.look_again.is_none_or(|at| at > now));
    let addresses: BTreeSet<_> = nodes.iter().map(|node| &node.address).collect();
    prop_assert_eq!(addresses.len(), nodes.len(), "no address twice");
    let ranges: Vec<_> = nodes.iter().flat_map(|node| node.slots.iter().flatten()).collect();
    prop_assert!(ranges.iter().all(|range| range.start <= range.end));
    let slots: u32 = ranges.iter().map(|range| range.end - range.start + 1).sum();
    prop_assert_eq!(slots, if nodes.is_empty() { 0 } else { 4096 });
    let kept = ring.entered.is_empty() && ring.left.is_empty();
    prop_assert_eq!(ring.moved_slots > 0, !kept && last.is_some_and(|last| !last.nodes.is_empty()));
    Ok(())
}

fn period(ready: std::ops::Range<i64>, down: std::ops::Range<i64>) -> impl Strategy<Value = Period> {
    (down, ready, 0u8..6, any::<bool>()).prop_map(|(down, ready, host, gone)| Period {
        down,
        ready,
        host,
        gone,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Asked only when something happens and when it wants to be asked, the operator has the ring of the oracle at
    /// every second, although it remembers nothing but the text that it published. Addresses are few, so that pods
    /// inherit those of others all the time.
    #[test]
    fn the_ring_is_that_of_the_oracle(
        lives in prop::collection::vec(prop::collection::vec(period(1..90, 1..130), 1..5).prop_map(|periods| Life { periods }), 1..5),
    ) {
        let options = options(lives.len() as u32);
        let names: Vec<String> = (0..lives.len()).map(|number| format!("kv-{number}")).collect();
        let mut oracle = Oracle::default();
        let mut text: Option<String> = None;
        let mut look_again = None;
        let mut last_pods = None;
        for second in 0..400 {
            let pods = pods(&lives, second);
            oracle.step(&pods, &names, second);
            if last_pods.as_ref() != Some(&pods) || look_again.is_some_and(|again| again <= at(second)) {
                let before = PublishedRing::read(text.as_deref(), 0);
                let ring = decide(&pods, &before, &options, at(second));
                check(text.as_deref(), &ring, at(second))?;
                look_again = ring.look_again;
                text = Some(ring.text());
                last_pods = Some(pods.clone());
            }
            let published = PublishedRing::read(text.as_deref(), 0);
            let members = published.members();
            prop_assert!(members.keys().eq(&oracle.members), "{:?} at {second}, not {:?}", members.keys(), oracle.members);
            prop_assert_eq!(published.away.keys().collect::<Vec<_>>(), oracle.away.keys().collect::<Vec<_>>());
            prop_assert!(oracle.members.is_subset(&oracle.settled_once));
            for (name, address) in members {
                if let Some(RingPod { host, .. }) = pods.iter().find(|pod| pod.name == *name && serves_since(&pods, name).is_some()) {
                    prop_assert_eq!(Some(address.host()), host.as_deref());
                }
            }
        }
    }

    /// One pod of several is down once: no slot moves if it is back in time, and otherwise each of its slots moves away
    /// once and back once. Decisions are made every few seconds only.
    #[test]
    fn an_outage_moves_slots_once_and_back(
        count in 2u32..12, victim in 0u32..12, outage in 1i64..200, every in 3i64..9, gone in any::<bool>(),
    ) {
        let victim = victim % count;
        let life = |number| Life { periods: match number == victim {
            false => vec![Period { down: 0, ready: 1000, host: number as u8, gone }],
            true => vec![
                Period { down: 0, ready: 100, host: number as u8, gone },
                Period { down: outage, ready: 1000, host: 100, gone },
            ],
        }};
        let lives: Vec<Life> = (0..count).map(life).collect();
        let mut text: Option<String> = None;
        let mut owners: Vec<Vec<String>> = Vec::new();
        for second in (90..320).step_by(every as usize) {
            let before = PublishedRing::read(text.as_deref(), 0);
            let ring = decide(&pods(&lives, second), &before, &options(count), at(second));
            check(text.as_deref(), &ring, at(second))?;
            let names: Vec<String> = ring.document().nodes.iter().map(|node| node.name.clone()).collect();
            if owners.last() != Some(&names) {
                owners.push(names);
            }
            text = Some(ring.text());
        }
        // It is seen to be down, and to be back, up to `every` seconds late.
        if outage + every <= GRACE {
            prop_assert_eq!(owners.len(), 1);
        }
        if outage >= GRACE + 2 * every {
            prop_assert_eq!(owners.len(), 3);
        }
        prop_assert!(owners.len() == 1 || (owners.len() == 3 && owners[0] == owners[2]));
    }

    /// Whatever is published, whatever pods there are and whatever the clock says: a ring that is in order.
    #[test]
    fn nothing_that_is_published_makes_it_panic(
        text in prop::option::of(prop_oneof![
            any::<String>(),
            Just(r#"{"nodes":[{"name":"kv-0","addr":"h","port":1,"slots":[{"start":9,"end":3}]}],"version":3,"away_since_ms":{"kv-0":-9e99}}"#.to_owned()),
            Just(r#"{"members":["10.0.0.1:1","10.0.0.1:1"]}"#.to_owned()),
        ]),
        seen in any::<u64>(), second in any::<i32>(), replicas in 0u32..6,
        pods in prop::collection::vec((0u32..8, prop::option::of("[0-9a-z:.]{0,8}"), prop::option::of(any::<i32>())), 0..8),
    ) {
        let pods: Vec<RingPod> = pods.into_iter().map(|(number, host, since)| RingPod {
            name: format!("kv-{number}"),
            host,
            port: None,
            state: since.map_or(RingPodState::NotReady, |since| RingPodState::Ready(at(since.into()))),
        }).collect();
        let published = PublishedRing::read(text.as_deref(), seen);
        let ring = decide(&pods, &published, &options(replicas), at(second.into()));
        prop_assert!(ring.version() >= seen);
        let again = decide(&pods, &PublishedRing::read(Some(&ring.text()), seen), &options(replicas), at(second.into()));
        prop_assert_eq!((again.change, again.text()), (RingChange::None, ring.text()));
    }
}
