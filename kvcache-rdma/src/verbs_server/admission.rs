//! Who may have a queue pair: each pins megabytes, and an exchange costs its sender nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// How many queue pairs there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdmissionLimits {
    /// In all.
    pub connections: usize,
    /// Of clients that have not sent a request yet.
    pub strangers: usize,
    /// The same of one address.
    pub strangers_per_peer: usize,
}

impl Default for AdmissionLimits {
    /// 3 GiB of request buffers at most, 768 MiB of them for who has done nothing, 192 MiB for one address.
    fn default() -> Self {
        Self { connections: 512, strangers: 128, strangers_per_peer: 32 }
    }
}

/// Which limit a queue pair would be beyond.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// [`AdmissionLimits::connections`].
    #[error("there are {0} queue pairs, which is the limit; raise it, or let idle clients go")]
    Connections(usize),
    /// [`AdmissionLimits::strangers`].
    #[error("{0} queue pairs have never sent a request, which is the limit; what connects and does nothing?")]
    Strangers(usize),
    /// [`AdmissionLimits::strangers_per_peer`].
    #[error("{peer} has {count} queue pairs that have never sent a request, which is the limit")]
    StrangersOfPeer {
        /// The address.
        peer: IpAddr,
        /// How many.
        count: usize,
    },
}

/// Counts queue pairs.
#[derive(Debug)]
pub(super) struct Admission {
    limits: AdmissionLimits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    strangers: usize,
    strangers_of: HashMap<IpAddr, usize>,
}

impl Counts {
    fn end_stranger(&mut self, peer: IpAddr) {
        self.strangers -= 1;
        if let Some(count) = self.strangers_of.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.strangers_of.remove(&peer);
            }
        }
    }
}

/// A place among the queue pairs, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    peer: IpAddr,
    /// Whether it still counts as a stranger. Changed with the counts locked; read without, to be quick.
    stranger: AtomicBool,
}

impl Admission {
    pub(super) fn new(limits: AdmissionLimits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::default() })
    }

    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Permit, Refusal> {
        let mut counts = self.counts.lock();
        let of_peer = counts.strangers_of.get(&peer).copied().unwrap_or(0);
        let AdmissionLimits { connections, strangers, strangers_per_peer } = self.limits;
        if counts.connections >= connections {
            return Err(Refusal::Connections(counts.connections));
        }
        if of_peer >= strangers_per_peer {
            return Err(Refusal::StrangersOfPeer { peer, count: of_peer });
        }
        if counts.strangers >= strangers {
            return Err(Refusal::Strangers(counts.strangers));
        }
        counts.connections += 1;
        counts.strangers += 1;
        *counts.strangers_of.entry(peer).or_default() += 1;
        Ok(Permit { admission: Arc::clone(self), peer, stranger: AtomicBool::new(true) })
    }

    pub(super) fn connections(&self) -> usize {
        self.counts.lock().connections
    }
}

impl Permit {
    /// The client has sent a request that makes sense.
    pub(super) fn prove(&self) {
        if self.stranger.load(Ordering::Relaxed) {
            let mut counts = self.admission.counts.lock();
            if self.stranger.swap(false, Ordering::Relaxed) {
                counts.end_stranger(self.peer);
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock();
        counts.connections -= 1;
        if *self.stranger.get_mut() {
            counts.end_stranger(self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn strangers_are_few_and_others_many() {
        let limits = AdmissionLimits { connections: 6, strangers: 4, strangers_per_peer: 2 };
        let admission = Admission::new(limits);
        let one = [admission.admit(peer(1)).unwrap(), admission.admit(peer(1)).unwrap()];
        let refused = admission.admit(peer(1)).unwrap_err();
        assert_eq!(refused, Refusal::StrangersOfPeer { peer: peer(1), count: 2 });
        let other = [admission.admit(peer(2)).unwrap(), admission.admit(peer(3)).unwrap()];
        assert_eq!(admission.admit(peer(4)).unwrap_err(), Refusal::Strangers(4));
        one.iter().for_each(Permit::prove);
        one.iter().for_each(Permit::prove);
        let more = [admission.admit(peer(1)).unwrap(), admission.admit(peer(1)).unwrap()];
        assert_eq!(admission.admit(peer(5)).unwrap_err(), Refusal::Connections(6));
        drop((one, other, more));
        let counts = admission.counts.lock();
        assert_eq!((counts.connections, counts.strangers, counts.strangers_of.len()), (0, 0, 0));
    }
}
