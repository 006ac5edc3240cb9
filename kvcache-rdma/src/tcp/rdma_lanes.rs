//! Queue pairs to one server, beside its connections over TCP: values travel here, everything else there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::ring_client::{ItemEnd, RequestId, ServerId};
use mio::Registry;

use super::connection::Turn;
use super::fault::{Fault, FaultReason};
use super::rdma_lane::RdmaLane;
use super::server::token;
use super::work::Batch;
use crate::rdma::{LaneSettings, ReadyLane};

/// After a lane could not be had the next one waits so long, and twice as long after each further one.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The same where there is no RDMA at all: somebody must do something first.
const RETRY_WITHOUT_RDMA: Duration = Duration::from_secs(10);

/// So many lanes in a row over which nothing has come say that nothing will: the network has no way for RDMA.
const UNHEARD_MAX: u32 = 2;

/// Lanes to one server, at most. A stock server pins 512 MiB for each.
pub(super) const LANES_MAX: usize = 8;

pub(super) struct RdmaLanes {
    id: ServerId,
    settings: Arc<LaneSettings>,
    places: Vec<Place>,
    pub(super) queue: VecDeque<Batch>,
    /// When the next lane may be set up.
    open_after: Duration,
    backoff: Duration,
    /// Whether one was: the first is set up without being asked for, since that takes its time.
    tried: bool,
    /// Why there is none, until something has come over one: that a queue pair is connected does not say that its packets
    /// arrive.
    fault: Option<Fault>,
    /// Lanes in a row that were connected and over which nothing has come.
    unheard: u32,
}

enum Place {
    Free,
    /// A thread is at it.
    SettingUp,
    Open(Box<RdmaLane>),
}

impl RdmaLanes {
    pub(super) fn new(id: ServerId, settings: Arc<LaneSettings>, count: usize) -> Self {
        Self {
            id,
            settings,
            places: (0..count.clamp(1, LANES_MAX)).map(|_| Place::Free).collect(),
            queue: VecDeque::new(),
            open_after: Duration::ZERO,
            backoff: Duration::ZERO,
            tried: false,
            fault: None,
            unheard: 0,
        }
    }

    /// Lanes that work, and why there is none.
    pub(super) fn state(&self) -> (usize, Option<String>) {
        let open = self.places.iter().filter(|place| matches!(place, Place::Open(_))).count();
        let fault = self.fault.as_ref().filter(|_| open == 0);
        (open, fault.map(|fault| format!("{}: {}", fault.reason.name(), fault.text)))
    }

    /// Whether it is known that values cannot be moved now: then the server is not well, whatever it says over TCP.
    pub(super) fn is_unusable(&self, now: Duration) -> bool {
        self.fault.is_some() && now < self.open_after && self.is_empty()
    }

    /// Whether there is no lane, and none to come.
    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(|place| matches!(place, Place::Free))
    }

    /// Whether something is under way.
    pub(super) fn is_waiting(&self) -> bool {
        let busy = |place: &Place| match place {
            Place::Free => false,
            Place::SettingUp => true,
            Place::Open(lane) => lane.owes(),
        };
        !self.queue.is_empty() || self.places.iter().any(busy)
    }

    /// A place for a lane that is wanted, of the first `count`: it counts as being set up from now on.
    pub(super) fn wanted_place(&mut self, count: usize, now: Duration) -> Option<usize> {
        let coming = self.places.iter().filter(|place| matches!(place, Place::SettingUp)).count();
        if now < self.open_after || (self.tried && self.queue.len() <= coming) {
            return None;
        }
        let mut places = self.places.iter_mut().take(count.max(1)).enumerate();
        let (index, place) = places.find(|(_, place)| matches!(place, Place::Free))?;
        *place = Place::SettingUp;
        self.tried = true;
        Some(index)
    }

    /// A lane was set up. One that was begun for an earlier member of the same name is not wanted any more.
    pub(super) fn opened(
        &mut self,
        index: usize,
        ready: ReadyLane,
        registry: &Registry,
        now: Duration,
    ) -> Result<(), Fault> {
        let Some(place @ Place::SettingUp) = self.places.get_mut(index) else { return Ok(()) };
        let tokens = [0, 1].map(|half| token(self.id, FIRST_PLACE + 2 * index + half));
        *place = Place::Open(Box::new(RdmaLane::open(ready, registry, tokens, now)?));
        Ok(())
    }

    /// None was: see [`failed`](Self::failed) for the rest.
    pub(super) fn not_opened(&mut self, index: usize) {
        if let Some(place @ Place::SettingUp) = self.places.get_mut(index) {
            *place = Place::Free;
        }
    }

    /// There is something wrong with the server, or with RDMA here: the next lane waits.
    pub(super) fn failed(&mut self, fault: &Fault, now: Duration) {
        self.wait_longer(now);
        if fault.reason == FaultReason::Rdma || self.unheard >= UNHEARD_MAX {
            self.open_after = now + RETRY_WITHOUT_RDMA;
        }
        self.fault = Some(fault.clone());
    }

    fn wait_longer(&mut self, now: Duration) {
        self.backoff = (self.backoff * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.open_after = now + self.backoff;
    }

    /// Gives requests to the lanes that have the least to do. The lanes that broke over it, which must be closed.
    pub(super) fn begin(&mut self, now: Duration, ends: &mut Vec<ItemEnd>) -> Vec<(usize, Fault)> {
        let mut broken = Vec::new();
        while let Some(batch) = self.queue.front_mut() {
            let lanes = self.places.iter_mut().enumerate().filter_map(|(index, place)| match place {
                Place::Open(lane) if lane.has_room() && broken.iter().all(|(other, _)| *other != index) => {
                    Some((index, lane))
                }
                _ => None,
            });
            let Some((index, lane)) = lanes.min_by_key(|(index, lane)| (lane.load(), *index)) else { break };
            let settings = &self.settings;
            if let Err(fault) = lane.begin(batch, &settings.device, &settings.verbs, now, ends) {
                broken.push((index, fault));
            }
            if batch.items.is_empty() {
                self.queue.pop_front();
            }
        }
        broken
    }

    /// An event of a lane: `half` 0 is of its queue pair, 1 of its TCP connection. After a fault the lane must be closed.
    pub(super) fn turn(
        &mut self,
        index: usize,
        half: usize,
        now: Duration,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<Turn, Fault> {
        // An event may be of a lane that is gone.
        let Some(Place::Open(lane)) = self.places.get_mut(index) else {
            return Ok(Turn { heard: false, again: false });
        };
        let turn = lane.turn(now, ends)?;
        if turn.heard {
            (self.backoff, self.unheard, self.fault) = (Duration::ZERO, 0, None);
        }
        if half == 1 && lane.is_ended_by_peer() {
            return Err(Fault::new(FaultReason::Lost, "the server has closed the connection"));
        }
        Ok(turn)
    }

    /// Lanes on which nothing ends, which must be closed.
    pub(super) fn check(&self, silence_max: Duration, now: Duration) -> Vec<(usize, Fault)> {
        let faults = self.places.iter().enumerate().filter_map(|(index, place)| match place {
            Place::Open(lane) => lane.check(silence_max, now).err().map(|fault| (index, fault)),
            _ => None,
        });
        faults.collect()
    }

    /// Takes a lane out, to be closed.
    pub(super) fn take(&mut self, index: usize, now: Duration) -> Option<Box<RdmaLane>> {
        let place = self.places.get_mut(index)?;
        match std::mem::replace(place, Place::Free) {
            Place::Open(lane) => {
                if !lane.was_heard() {
                    self.unheard += 1;
                    // Whoever takes connections and drops them is not called without a pause.
                    self.wait_longer(now);
                }
                Some(lane)
            }
            other => {
                *place = other;
                None
            }
        }
    }

    /// Nobody waits for these any more; those whose memory is in use nevertheless, by position.
    pub(super) fn forget(&mut self, request: RequestId, item: Option<u32>, now: Duration) -> Vec<u32> {
        self.queue.iter_mut().for_each(|batch| batch.forget(request, item));
        self.queue.retain(|batch| !batch.items.is_empty());
        let lanes = self.places.iter_mut().filter_map(|place| match place {
            Place::Open(lane) => Some(lane),
            _ => None,
        });
        lanes.flat_map(|lane| lane.forget(request, item, now)).collect()
    }
}

/// Of the places that make a server's tokens, the first that is a lane's: each has two.
pub(super) const FIRST_PLACE: usize = 40;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::rdma::{Device, RdmaPort};
    use crate::verbs::{FakeNetwork, Port};
    use crate::verbs_client::{Lane, VerbsClientConfig};

    struct Rig {
        network: FakeNetwork,
        port: Port,
        listener: TcpListener,
        lanes: RdmaLanes,
        poll: mio::Poll,
    }

    fn rig() -> Rig {
        let network = FakeNetwork::new();
        let port = network.port();
        let settings = LaneSettings {
            device: Arc::new(Device::new(&RdmaPort::Opened(port.clone()))),
            verbs: VerbsClientConfig::default(),
            connect_timeout: Duration::from_secs(1),
            token: Vec::new(),
        };
        let lanes = RdmaLanes::new(ServerId(3), Arc::new(settings), 2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Rig { network, port, listener, lanes, poll: mio::Poll::new().unwrap() }
    }

    impl Rig {
        /// A lane was set up for this place.
        fn opened(&mut self, index: usize, now: Duration) {
            let stream = std::net::TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            stream.set_nonblocking(true).unwrap();
            let ready = ReadyLane {
                lane: Lane::new(&self.port, &VerbsClientConfig::default()).unwrap(),
                control: mio::net::TcpStream::from_std(stream),
            };
            self.lanes.opened(index, ready, self.poll.registry(), now).unwrap();
        }
    }

    /// Connected, and then nothing comes, again and again: TCP has a way there, RDMA has none.
    #[test]
    fn lanes_over_which_nothing_comes_are_not_set_up_again_and_again() {
        let mut rig = rig();
        let mut now = Duration::ZERO;
        let silent = Fault::new(FaultReason::Stalled, "nothing came");
        for _ in 0..2 {
            // As if something waited for it.
            rig.lanes.tried = false;
            assert_eq!(rig.lanes.wanted_place(1, now), Some(0));
            rig.opened(0, now);
            drop(rig.lanes.take(0, now).unwrap());
            rig.lanes.failed(&silent, now);
            assert!(rig.lanes.is_unusable(now), "whatever it says over TCP");
            now += Duration::from_secs(1);
        }
        rig.lanes.tried = false;
        assert_eq!(rig.lanes.wanted_place(1, now), None);
        assert!(rig.lanes.is_unusable(now + Duration::from_secs(8)));
        assert_eq!(rig.lanes.wanted_place(1, now + Duration::from_secs(10)), Some(0));
    }

    /// A member left while its lane was set up, came back, and has one: the late one must not take its place, with what
    /// it carries.
    #[test]
    fn a_lane_that_comes_late_takes_no_place() {
        let (mut rig, now) = (rig(), Duration::ZERO);
        assert_eq!(rig.lanes.wanted_place(2, now), Some(0), "the first is begun without being asked for");
        assert_eq!(rig.lanes.wanted_place(2, now), None);
        for _ in 0..2 {
            rig.opened(0, now);
            assert_eq!((rig.lanes.state().0, rig.network.queue_pairs()), (1, 1));
        }
        rig.lanes.not_opened(0);
        assert_eq!(
            (rig.lanes.state().0, rig.network.queue_pairs()),
            (1, 1),
            "a late fault takes none either"
        );
        rig.opened(1, now);
        assert_eq!(rig.network.queue_pairs(), 1, "nobody wanted a second");
    }
}
