//! One case for each reason, and what must hold between one status and the next.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::{KVCache, Options, Problem, accept};

fn a_cache() -> Accepted {
    let cache: KVCache = serde_json::from_value(json!({
        "metadata": {
            "name": "prompts", "namespace": "models", "uid": "u", "generation": 7,
            "annotations": {"kvcache.orchestration.aibrix.ai/backend": "kvcache"}
        },
        "spec": {"cache": {"replicas": 3}}
    }))
    .expect("a cache");
    let options =
        Options { adopt: BTreeSet::new(), server_image: "s".to_owned(), redis_image: "r".to_owned() };
    accept(&cache, &options).expect("it is fine")
}

fn refusal(reason: Reason) -> Refusal {
    let problem = Problem { field: "spec.x".to_owned(), message: "1 is wrong: give 2".to_owned() };
    Refusal { reason, problems: vec![problem] }
}

fn settled(accepted: &Accepted) -> Observation<'_> {
    Observation {
        name: "prompts",
        generation: 7,
        verdict: Verdict::Accepted(accepted),
        write_failure: None,
        servers: Servers { wanted: 3, present: 3, ready: 3, current: 3 },
        ring: Some(Ring { version: 5, members: 3, slots: 4096 }),
        ring_failure: None,
        store: StoreState::NotConfigured,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// `Accepted=True/Valid` and so on.
fn said(status: &KVCacheStatus) -> Vec<String> {
    let conditions = status.conditions.iter().flatten();
    conditions
        .map(|condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason))
        .collect()
}

#[test]
fn a_settled_cache_says_so() {
    let accepted = a_cache();
    let status = status(None, &settled(&accepted), at(1000));
    assert_eq!(
        said(&status),
        [
            "Accepted=True/Valid",
            "MetadataReady=True/NotConfigured",
            "RingPublished=True/Published",
            "Available=True/AllReady",
            "Progressing=False/Settled"
        ]
    );
    let selector = "kvcache.orchestration.aibrix.ai/name=prompts,kvcache.orchestration.aibrix.ai/role=cache";
    let expected = KVCacheStatus {
        observed_generation: Some(7),
        current: Some(3),
        desired: Some(3),
        selector: Some(selector.to_owned()),
        ring_version: Some(5),
        ring_members: Some(3),
        ring_slots: Some(4096),
        backend: Some("kvcache".to_owned()),
        conditions: status.conditions.clone(),
    };
    assert_eq!(status, expected);
    // Kubernetes 1.20 takes an empty text for null.
    assert!(status.conditions.iter().flatten().all(|condition| !condition.message.is_empty()), "{status:?}");
}

/// Defect 13 of AIBrix: no status at all. Here each thing that can be wrong turns one condition, and says what.
#[test]
fn defect_13_every_trouble_has_its_condition_and_reason() {
    let accepted = a_cache();
    let refused = refusal(Reason::MemoryTooSmall);
    let base = settled(&accepted);
    let servers = |wanted, present, ready, current| Servers { wanted, present, ready, current };
    let ring = |members, slots| Some(Ring { version: 5, members, slots });
    for (observation, expected, says) in [
        (
            Observation { verdict: Verdict::Refused(&refused), ..base.clone() },
            ["Accepted=False/MemoryTooSmall", "Progressing=False/Held"].as_slice(),
            "spec.x: 1 is wrong: give 2",
        ),
        (
            Observation {
                verdict: Verdict::Blocked(
                    &accepted,
                    vec!["Service prompts-headless-service is of Deployment web".to_owned()],
                ),
                ..base.clone()
            },
            &["Accepted=False/OwnedByOther", "Progressing=False/Held"],
            "Service prompts-headless-service is of Deployment web: rename",
        ),
        (
            Observation { store: StoreState::Unreachable("redis:6379: refused".to_owned()), ..base.clone() },
            &["MetadataReady=False/Unreachable"],
            "redis:6379: refused",
        ),
        (
            Observation { store: StoreState::SecretMissing("Secret login".to_owned()), ..base.clone() },
            &["MetadataReady=False/SecretMissing"],
            "Secret login",
        ),
        (
            Observation { store: StoreState::KeyInUse("models/other".to_owned()), ..base.clone() },
            &["MetadataReady=False/KeyInUse"],
            "models/other",
        ),
        (Observation { store: StoreState::Connected, ..base.clone() }, &["MetadataReady=True/Connected"], ""),
        (
            Observation { ring_failure: Some("409".to_owned()), ..base.clone() },
            &["RingPublished=False/PublishFailed", "Available=True/AllReady"],
            "409",
        ),
        (
            Observation { ring: None, ..base.clone() },
            &["RingPublished=False/PublishFailed", "Available=False/NoServers"],
            "no ring has been published yet",
        ),
        (
            Observation { ring: ring(0, 0), servers: servers(3, 3, 0, 3), ..base.clone() },
            &["RingPublished=True/EmptyRing", "Available=False/NoServers", "Progressing=True/Scaling"],
            "none of 3 servers is in the ring",
        ),
        (
            Observation { ring: ring(0, 0), servers: servers(0, 0, 0, 0), ..base.clone() },
            &["Available=False/NoServers", "Progressing=False/Settled"],
            "no servers are asked for",
        ),
        (
            Observation { ring: ring(2, 4096), servers: servers(3, 2, 2, 2), ..base.clone() },
            &["Available=True/Degraded", "Progressing=True/Scaling"],
            "2 of 3 servers are there",
        ),
        (
            Observation { servers: servers(3, 3, 2, 1), ..base.clone() },
            &["Available=True/Degraded", "Progressing=True/RollingUpdate"],
            "of 3 servers 3 are in the ring and 2 are ready",
        ),
        (
            Observation { servers: servers(3, 4, 3, 3), ..base.clone() },
            &["Available=True/AllReady", "Progressing=True/Scaling"],
            "4 of 3 servers are there",
        ),
        (
            Observation {
                write_failure: Some("apply Service prompts: 500".to_owned()),
                servers: servers(3, 2, 2, 2),
                ..base.clone()
            },
            &["Accepted=True/Valid", "Progressing=False/WriteFailed"],
            "apply Service prompts: 500",
        ),
        (
            Observation { store: StoreState::Failed("get Secret login: 403".to_owned()), ..base.clone() },
            &["MetadataReady=False/PublishFailed"],
            "get Secret login: 403",
        ),
    ] {
        let status = status(None, &observation, at(1000));
        let said = said(&status);
        assert!(
            expected.iter().all(|condition| said.iter().any(|other| other == condition)),
            "{expected:?}: {said:?}"
        );
        let messages = status.conditions.iter().flatten().map(|condition| condition.message.as_str());
        assert!(messages.clone().all(|message| !message.is_empty()), "{:?}", messages.collect::<Vec<_>>());
        assert!(
            messages.clone().any(|message| message.contains(says)),
            "{says}: {:?}",
            messages.collect::<Vec<_>>()
        );
    }
}

#[test]
fn of_a_cache_of_another_operator_one_condition_is_said() {
    let accepted = a_cache();
    let refused = refusal(Reason::UnknownBackend);
    let observation = Observation { verdict: Verdict::Unclaimed(&refused), ..settled(&accepted) };
    let status = status(None, &observation, at(1000));
    assert_eq!(said(&status), ["Accepted=False/UnknownBackend"]);
    assert_eq!((status.current, status.selector), (None, None));
}

#[test]
fn a_refused_edit_keeps_what_was_said_of_what_runs() {
    let accepted = a_cache();
    let before = status(None, &settled(&accepted), at(1000));
    let refused = refusal(Reason::InvalidSpec);
    let observation =
        Observation { verdict: Verdict::Refused(&refused), generation: 8, ..settled(&accepted) };
    let after = status(Some(&before), &observation, at(2000));
    assert_eq!(after.backend.as_deref(), Some("kvcache"));
    assert_eq!((after.current, after.ring_members), (Some(3), Some(3)));
    assert_eq!(said(&after)[3], "Available=True/AllReady");
}

#[test]
fn long_messages_are_cut_between_characters() {
    let problem = Problem { field: "spec.x".to_owned(), message: "ü".repeat(40_000) };
    let refused = Refusal { reason: Reason::InvalidSpec, problems: vec![problem] };
    let accepted = a_cache();
    let status =
        status(None, &Observation { verdict: Verdict::Refused(&refused), ..settled(&accepted) }, at(0));
    let message = &status.conditions.as_ref().expect("conditions")[0].message;
    assert!(message.len() <= 4096 && message.ends_with("ü…"), "{}", message.len());
}

/// An observation from a few numbers.
fn observed<'a>(accepted: &'a Accepted, refused: &'a Refusal, numbers: [u8; 8]) -> Observation<'a> {
    let [verdict, wanted, present, ready, current, members, ring, store] = numbers;
    Observation {
        name: "prompts",
        generation: 7,
        verdict: match verdict % 3 {
            0 => Verdict::Refused(refused),
            1 => Verdict::Blocked(accepted, vec!["Service x".to_owned()]),
            _ => Verdict::Accepted(accepted),
        },
        write_failure: (ring % 7 == 0).then(|| "500".to_owned()),
        servers: Servers {
            wanted: wanted.into(),
            present: present.into(),
            ready: ready.into(),
            current: current.into(),
        },
        ring: (ring % 3 > 0).then_some(Ring { version: ring.into(), members: members.into(), slots: 4096 }),
        ring_failure: (ring % 5 == 0).then(|| "409".to_owned()),
        store: match store % 6 {
            0 => StoreState::NotConfigured,
            1 => StoreState::Connected,
            2 => StoreState::Unreachable("no".to_owned()),
            3 => StoreState::SecretMissing("s".to_owned()),
            4 => StoreState::Failed("403".to_owned()),
            _ => StoreState::KeyInUse("k".to_owned()),
        },
    }
}

proptest! {
    /// What is observed again gives the same status, whenever; what was stored in between may have lost fractions of a
    /// second.
    #[test]
    fn nothing_new_changes_nothing(numbers: [u8; 8], first in 0_i64..1 << 40, later in 0_i64..1 << 40, nanos in 0_i32..999_999_999) {
        let (accepted, refused) = (a_cache(), refusal(Reason::InvalidSpec));
        let observation = observed(&accepted, &refused, numbers);
        let first = Timestamp::new(first / 1000, nanos).expect("a time");
        let written = status(None, &observation, first);
        let stored: KVCacheStatus =
            serde_json::from_value(serde_json::to_value(&written).expect("JSON")).expect("a status");
        prop_assert_eq!(&stored, &written);
        prop_assert_eq!(status(Some(&stored), &observation, at(later / 1000)), written);
    }

    /// A condition's time changes exactly when it turns.
    #[test]
    fn times_change_only_with_what_they_time(before: [u8; 8], after: [u8; 8]) {
        let (accepted, refused) = (a_cache(), refusal(Reason::InvalidSpec));
        let old = status(None, &observed(&accepted, &refused, before), at(1000));
        let new = status(Some(&old), &observed(&accepted, &refused, after), at(2000));
        let pairs = old.conditions.iter().flatten().zip(new.conditions.iter().flatten());
        for (old, new) in pairs {
            prop_assert_eq!(&old.type_, &new.type_);
            let expected = if old.status == new.status { at(1000) } else { at(2000) };
            prop_assert_eq!(new.last_transition_time.0, expected);
        }
    }

    /// All five conditions are there, once each and in order, with a reason.
    #[test]
    fn all_conditions_are_always_there(numbers: [u8; 8]) {
        let (accepted, refused) = (a_cache(), refusal(Reason::InvalidSpec));
        let status = status(None, &observed(&accepted, &refused, numbers), at(1000));
        let types: Vec<String> = status.conditions.iter().flatten().map(|condition| condition.type_.clone()).collect();
        prop_assert_eq!(types, ConditionType::ALL.map(|kind| kind.to_string()));
        prop_assert!(status.conditions.iter().flatten().all(|condition| !condition.reason.is_empty()));
    }
}
