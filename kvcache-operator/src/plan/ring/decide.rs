//! The rules of [`super`].

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kvcache_core::ring::{MEMBERS_MAX, RING_SLOTS, ServerAddress, SlotTable};

use super::{PublishedRing, RingChange, RingDecision, RingPod, RingPodState};

/// What the ring of one cache looks like, and how patient it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingOptions {
    /// The name of the StatefulSet: its pods are `NAME-0`, `NAME-1` and so on.
    pub name: String,
    /// How many pods are wanted. Beyond [`MEMBERS_MAX`] they get no slots.
    pub replicas: u32,
    /// Where servers of the present template listen, not 0.
    pub port: u16,
    /// The domain in which pods have names of their own, `NAME-headless-service.NAMESPACE.svc`.
    pub domain: String,
    /// How long a pod is ready before it enters.
    pub min_ready: Duration,
    /// How long a member keeps its slots while its pod is not ready.
    pub not_ready_grace: Duration,
}

/// The ring to publish, given the pods that there are and the ring that is published.
///
/// `pods` must be all that there are: an empty list from a watch that has not begun would mean that all have vanished.
/// Clocks may be wrong. A pod that is ready since a time later than `min_ready` from now is taken for one that has been
/// ready for long, and a member that is away since a time in the future is away since now.
///
/// Cost: linear in the pods and members; where members change, two slot tables as well. Nothing of the document is made.
pub fn decide(
    pods: &[RingPod],
    published: &PublishedRing,
    options: &RingOptions,
    now: Timestamp,
) -> RingDecision {
    let before = &published.members;
    let places = Places::of(pods, options.port);
    let mut later = Later { now, first: None };
    let mut ring = Ring::default();
    for name in (0..options.replicas.min(MEMBERS_MAX as u32)).map(|n| format!("{}-{n}", options.name)) {
        let place = places.by_pod.get(name.as_str()).unwrap_or(&Place::Away);
        match (place, before.get(&name)) {
            (Place::Draining, _) | (Place::Away, None) => {}
            (Place::Serves { since, address }, known) => {
                let settled = later.has_come(ready_at(*since, now, options.min_ready));
                if known.is_none() && !settled {
                    continue;
                }
                if let Some(&away_since) = published.away.get(&name).filter(|_| !settled) {
                    ring.away.insert(name.clone(), away_since.min(now));
                }
                ring.servers.insert(name, address.clone());
            }
            (Place::Away, Some(last)) => {
                let since = published.away.get(&name).copied().unwrap_or(now).min(now);
                if later.has_come(after(since, options.not_ready_grace)) {
                    continue;
                }
                if let Some(address) = ring.address_while_away(&name, last, &places, options) {
                    ring.away.insert(name.clone(), since);
                    ring.servers.insert(name, address);
                }
            }
        }
    }
    ring.decision(published, later.first)
}

/// What the pods of this moment mean for the ring.
struct Places<'a> {
    by_pod: BTreeMap<&'a str, Place>,
    /// Whose addresses these are. Of several pods that claim one, it is that of the pod that became ready last: the
    /// others are what is left of pods that lost it.
    holders: BTreeMap<ServerAddress, &'a str>,
}

enum Place {
    Serves { since: Timestamp, address: ServerAddress },
    Away,
    Draining,
}

impl<'a> Places<'a> {
    fn of(pods: &'a [RingPod], port: u16) -> Self {
        let address = |pod: &RingPod| ServerAddress::new(pod.host.as_ref()?, pod.port.unwrap_or(port)).ok();
        let ready_since = |pod: &RingPod| match pod.state {
            RingPodState::Ready(since) => Some(since),
            RingPodState::NotReady | RingPodState::Draining => None,
        };
        let mut claims: Vec<_> = (pods.iter())
            .filter_map(|pod| Some(((ready_since(pod), pod.name.as_str()), address(pod)?)))
            .collect();
        claims.sort_unstable();
        let holders =
            claims.into_iter().map(|((_, name), address)| (address, name)).collect::<BTreeMap<_, _>>();
        let place = |pod: &RingPod| match (pod.state, address(pod)) {
            (RingPodState::Draining, _) => Place::Draining,
            (RingPodState::Ready(since), Some(address)) if holders[&address] == pod.name => {
                Place::Serves { since, address }
            }
            _ => Place::Away,
        };
        Self { by_pod: pods.iter().map(|pod| (pod.name.as_str(), place(pod))).collect(), holders }
    }
}

/// The ring that is being put together.
#[derive(Default)]
struct Ring {
    servers: BTreeMap<String, ServerAddress>,
    away: BTreeMap<String, Timestamp>,
}

impl Ring {
    /// The address of a member whose pod does not serve: the last one, which costs clients a refused connection, unless
    /// another pod has it by now. Then it is the pod's own name, which leads to nobody until the pod is back: no two
    /// members may have one address.
    fn address_while_away(
        &self,
        name: &str,
        last: &ServerAddress,
        places: &Places<'_>,
        options: &RingOptions,
    ) -> Option<ServerAddress> {
        let pod_has_it = places.holders.get(last).is_some_and(|holder| *holder != name);
        let member_has_it = self.away.keys().any(|other| self.servers.get(other) == Some(last));
        if !pod_has_it && !member_has_it {
            return Some(last.clone());
        }
        // Names of pods and services are names of hosts, so this fails for options that cannot be.
        ServerAddress::new(&format!("{name}.{}", options.domain), options.port).ok()
    }

    fn decision(self, published: &PublishedRing, look_again: Option<Timestamp>) -> RingDecision {
        let before = &published.members;
        let seen = published.version_seen;
        let same = published.is_in_order
            && *before == self.servers
            && published.version.is_some_and(|version| version >= seen);
        let ms = |away: &BTreeMap<String, Timestamp>| -> Vec<_> {
            away.iter().map(|(name, since)| (name.clone(), since.as_millisecond())).collect()
        };
        let change = match published.is_as_written && ms(&self.away) == ms(&published.away) {
            _ if !same => RingChange::Ring,
            true => RingChange::None,
            false => RingChange::Memory,
        };
        let difference = |from: &BTreeMap<String, ServerAddress>,
                          without: &BTreeMap<String, ServerAddress>| {
            from.keys().filter(|name| !without.contains_key(*name)).cloned().collect::<Vec<_>>()
        };
        let readdressed = self
            .servers
            .iter()
            .filter(|(name, address)| before.get(*name).is_some_and(|last| last != *address));
        RingDecision {
            change,
            look_again,
            moved_slots: moved_slots(before, &self.servers),
            entered: difference(&self.servers, before),
            left: difference(before, &self.servers),
            readdressed: readdressed.map(|(name, _)| name.clone()).collect(),
            // An operator that counts a change a nanosecond has centuries until it saturates.
            version: if same { seen } else { seen.saturating_add(1) },
            away_since: self.away,
            servers: self.servers,
        }
    }
}

fn moved_slots(before: &BTreeMap<String, ServerAddress>, after: &BTreeMap<String, ServerAddress>) -> usize {
    if before.keys().eq(after.keys()) {
        return 0;
    }
    let table =
        |servers: &BTreeMap<String, ServerAddress>| SlotTable::new(&servers.keys().collect::<Vec<_>>()).ok();
    match (table(before), table(after)) {
        (None, _) => 0,
        (Some(_), None) => RING_SLOTS,
        (Some(before), Some(after)) => before.moves_to(&after).len(),
    }
}

/// Tells what is still to come, and keeps the first of it.
struct Later {
    now: Timestamp,
    first: Option<Timestamp>,
}

impl Later {
    fn has_come(&mut self, at: Timestamp) -> bool {
        let has_come = at <= self.now;
        if !has_come {
            self.first = Some(self.first.map_or(at, |first| first.min(at)));
        }
        has_come
    }
}

/// When a pod that is ready since `since` has been for `min_ready`. A time that is further away than that comes from a
/// clock that is wrong, and nothing can be said: the pod does not wait for it.
fn ready_at(since: Timestamp, now: Timestamp, min_ready: Duration) -> Timestamp {
    if since > after(now, min_ready) { now } else { after(since, min_ready) }
}

/// In whole milliseconds, as the document has them.
fn after(time: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(time.as_millisecond().saturating_add(by)).unwrap_or(Timestamp::MAX)
}
