//! The status of a cache, from its spec and what was observed.
//!
//! It changes only when something changed: what is observed twice gives the same status, to the byte, so that it need
//! not be written. In particular a condition keeps its time until it turns.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::desired::selector;
use crate::api::{Accepted, ConditionType, KVCacheStatus, Reason, Refusal};

/// What a reconciliation has found.
#[derive(Clone, PartialEq, Debug)]
pub struct Observation<'a> {
    /// The resource's name.
    pub name: &'a str,
    /// The generation of its spec.
    pub generation: i64,
    /// What became of the spec.
    pub verdict: Verdict<'a>,
    /// Why objects that the spec asks for are not as they should be.
    pub write_failure: Option<String>,
    /// The servers' pods.
    pub servers: Servers,
    /// The published ring, if there is one.
    pub ring: Option<Ring>,
    /// Why the ring that follows from the pods could not be published.
    pub ring_failure: Option<String>,
    /// The store of the ring besides its ConfigMap.
    pub store: StoreState,
}

/// What became of a spec.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict<'a> {
    /// It is served.
    Accepted(&'a Accepted),
    /// It is not; what ran before goes on.
    Refused(&'a Refusal),
    /// It is not, and nothing of it ever ran here: it may be another operator's.
    Unclaimed(&'a Refusal),
    /// It would be, but for objects that are somebody else's: their kinds and names, and whose they are.
    Blocked(&'a Accepted, Vec<String>),
}

/// Pods of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Servers {
    /// Asked for: by the spec, or by the StatefulSet that runs where the spec was refused.
    pub wanted: u32,
    /// There, ready or not.
    pub present: u32,
    /// Ready.
    pub ready: u32,
    /// Made from today's template.
    pub current: u32,
}

/// A published ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Its version.
    pub version: u64,
    /// Its members.
    pub members: u32,
    /// Slots that they own.
    pub slots: u32,
}

/// The store of the ring besides its ConfigMap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreState {
    /// None is asked for.
    NotConfigured,
    /// It has the ring.
    Connected,
    /// It cannot be reached, or refuses: why.
    Unreachable(String),
    /// The API server refuses what has to be done before it can be asked: why.
    Failed(String),
    /// Its password cannot be had: which Secret or key is missing.
    SecretMissing(String),
    /// Its key is another cache's: whose.
    KeyInUse(String),
}

/// The status that follows. `previous` is the one that is stored: from it come the times of conditions that have not
/// turned since.
pub fn status(
    previous: Option<&KVCacheStatus>,
    observation: &Observation<'_>,
    now: Timestamp,
) -> KVCacheStatus {
    let stamp = |(kind, (truth, reason, message)): (ConditionType, Finding)| {
        let kind = kind.to_string();
        let status = truth.to_owned();
        let old = previous.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let old = old.iter().find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            last_transition_time: old
                .map_or_else(|| Time(whole_seconds(now)), |old| old.last_transition_time.clone()),
            message: shortened(message),
            observed_generation: Some(observation.generation),
            reason: reason.to_string(),
            status,
            type_: kind,
        }
    };
    let accepted = (ConditionType::Accepted, accepted(&observation.verdict));
    let base =
        KVCacheStatus { observed_generation: Some(observation.generation), ..KVCacheStatus::default() };
    if let Verdict::Unclaimed(_) = &observation.verdict {
        // Whatever else there is to say is for the operator whose it is.
        return KVCacheStatus { conditions: Some(vec![stamp(accepted)]), ..base };
    }
    let findings = [
        accepted,
        (ConditionType::MetadataReady, store(&observation.store)),
        (ConditionType::RingPublished, ring(observation)),
        (ConditionType::Available, available(observation)),
        (ConditionType::Progressing, progressing(observation)),
    ];
    let backend = match &observation.verdict {
        Verdict::Accepted(accepted) | Verdict::Blocked(accepted, _) => Some(accepted.backend.to_string()),
        Verdict::Refused(_) | Verdict::Unclaimed(_) => previous.and_then(|status| status.backend.clone()),
    };
    let servers = observation.servers;
    KVCacheStatus {
        current: i32::try_from(servers.ready).ok(),
        desired: i32::try_from(servers.wanted).ok(),
        selector: Some(selector(observation.name)),
        ring_version: observation.ring.and_then(|ring| i64::try_from(ring.version).ok()),
        ring_members: observation.ring.and_then(|ring| i32::try_from(ring.members).ok()),
        ring_slots: observation.ring.and_then(|ring| i32::try_from(ring.slots).ok()),
        backend,
        conditions: Some(findings.into_iter().map(stamp).collect()),
        ..base
    }
}

/// A condition's status, reason and message. The message is never empty: the API server of Kubernetes 1.20 takes an empty text
/// that is applied to a custom resource for null, and refuses the whole status.
type Finding = (&'static str, Reason, String);

const TRUE: &str = "True";
const FALSE: &str = "False";

fn accepted(verdict: &Verdict<'_>) -> Finding {
    match verdict {
        Verdict::Accepted(_) => (TRUE, Reason::Valid, "the spec is served".to_owned()),
        Verdict::Refused(refusal) => (FALSE, refusal.reason, refusal.to_string()),
        Verdict::Unclaimed(refusal) => {
            (FALSE, refusal.reason, format!("{refusal}; until then the cache is left alone"))
        }
        Verdict::Blocked(_, objects) => (
            FALSE,
            Reason::OwnedByOther,
            format!("{}: rename the cache, or remove what stands in its way", objects.join("; ")),
        ),
    }
}

fn store(state: &StoreState) -> Finding {
    match state {
        StoreState::NotConfigured => {
            (TRUE, Reason::NotConfigured, "the ring is in its ConfigMap alone".to_owned())
        }
        StoreState::Connected => (TRUE, Reason::Connected, "the store has the ring".to_owned()),
        StoreState::Unreachable(why) => (FALSE, Reason::Unreachable, why.clone()),
        StoreState::Failed(why) => (FALSE, Reason::PublishFailed, why.clone()),
        StoreState::SecretMissing(what) => (FALSE, Reason::SecretMissing, what.clone()),
        StoreState::KeyInUse(whose) => (FALSE, Reason::KeyInUse, whose.clone()),
    }
}

fn ring(observation: &Observation<'_>) -> Finding {
    match (&observation.ring_failure, observation.ring) {
        (Some(why), _) => (FALSE, Reason::PublishFailed, why.clone()),
        (None, None) => (FALSE, Reason::PublishFailed, "no ring has been published yet".to_owned()),
        (None, Some(Ring { members: 0, .. })) => {
            (TRUE, Reason::EmptyRing, "the published ring has no members".to_owned())
        }
        (None, Some(_)) => (TRUE, Reason::Published, "engines see the ring of the servers".to_owned()),
    }
}

fn available(observation: &Observation<'_>) -> Finding {
    let wanted = observation.servers.wanted;
    let members = observation.ring.map_or(0, |ring| ring.members);
    let ready = observation.servers.ready;
    match members {
        0 if wanted == 0 => (FALSE, Reason::NoServers, "no servers are asked for".to_owned()),
        0 => (FALSE, Reason::NoServers, format!("none of {wanted} servers is in the ring")),
        // A member that is not ready keeps its slots for a while: engines have misses there until it is back.
        _ if members < wanted || ready < wanted => (
            TRUE,
            Reason::Degraded,
            format!("of {wanted} servers {members} are in the ring and {ready} are ready"),
        ),
        _ => (TRUE, Reason::AllReady, "all servers are ready and in the ring".to_owned()),
    }
}

fn progressing(observation: &Observation<'_>) -> Finding {
    let Servers { wanted, present, ready, current } = observation.servers;
    match (&observation.verdict, &observation.write_failure) {
        (Verdict::Refused(_) | Verdict::Unclaimed(_), _) => {
            (FALSE, Reason::Held, "the spec was refused: what runs is left as it is".to_owned())
        }
        (Verdict::Blocked(..), _) => {
            (FALSE, Reason::Held, "objects of the same names are in the way".to_owned())
        }
        (Verdict::Accepted(_), Some(why)) => (FALSE, Reason::WriteFailed, why.clone()),
        (Verdict::Accepted(_), None) if present != wanted => {
            (TRUE, Reason::Scaling, format!("{present} of {wanted} servers are there"))
        }
        (Verdict::Accepted(_), None) if current < wanted => {
            (TRUE, Reason::RollingUpdate, format!("{current} of {wanted} servers are up to date"))
        }
        (Verdict::Accepted(_), None) if ready < wanted => {
            (TRUE, Reason::Scaling, format!("{ready} of {wanted} servers are ready"))
        }
        (Verdict::Accepted(_), None) => {
            (FALSE, Reason::Settled, "everything is as the spec asks for".to_owned())
        }
    }
}

/// What the API server keeps of a time. A finer one would differ from what is stored.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A condition's message has 32,768 bytes at most.
fn shortened(mut message: String) -> String {
    const MESSAGE_BYTES_MAX: usize = 4096;
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX - '…'.len_utf8()));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests;
