//! The thread of a lane: connects when there is work, moves it, and connects again when the lane breaks.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use kvcache_core::remote::{RemoteEnd, RemoteFailure, RemoteOp, RemoteOutcome};
use kvcache_wire::stock::CHECKSUM_SUFFIX;

use super::config::VerbsClientConfig;
use super::control::{ControlError, delete, exchange};
use super::lane::Lane;
use super::queue::SharedQueue;
use super::unit::Unit;
use crate::verbs::wait::wait;
use crate::verbs::{Error, Port};

/// What a lane's thread knows.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) server: SocketAddr,
    pub(super) port: Port,
    pub(super) config: VerbsClientConfig,
}

impl Worker {
    /// Runs until the client stops.
    pub(super) fn run(&self, queue: &SharedQueue) {
        let wake = queue.wake_of(self.index);
        while !queue.is_stopping() {
            wake.reset();
            let left_alone = queue.left_alone_for(Instant::now());
            if !queue.has_work() || !left_alone.is_zero() {
                let timeout = (!left_alone.is_zero() && queue.has_work()).then_some(left_alone);
                wait(&[wake.as_fd()], timeout);
                continue;
            }
            match self.connect() {
                Err(_) => queue.connecting_failed(Instant::now()),
                Ok((mut lane, mut stream)) => {
                    queue.lane_is_up();
                    // However it ends: what is in flight is given back.
                    let _ = self.drive(queue, &mut lane, &mut stream);
                    queue.lane_is_down(lane.into_units(), Instant::now());
                }
            }
        }
    }

    fn connect(&self) -> Result<(Lane, TcpStream), ControlError> {
        let mut lane = Lane::new(&self.port, &self.config)?;
        let stream = exchange(
            self.server,
            lane.pair(),
            &[],
            (self.config.connect_timeout, self.config.connect_timeout),
        )?;
        stream.set_nonblocking(true)?;
        Ok((lane, stream))
    }

    /// Moves work until the client stops (no error), or the lane breaks or is late.
    fn drive(&self, queue: &SharedQueue, lane: &mut Lane, stream: &mut TcpStream) -> Result<(), Error> {
        let wake = queue.wake_of(self.index);
        let mut ends = Vec::new();
        while !queue.is_stopping() {
            wake.reset();
            let now = Instant::now();
            let mut moved = false;
            while lane.has_room() {
                let Some(unit) = queue.take(now) else { break };
                moved = true;
                if unit.op != RemoteOp::Delete {
                    lane.begin(unit)?;
                } else if let Err(unit) = self.delete(unit, stream, &mut ends) {
                    lane.give_back(unit);
                    return Err(Error::Broken);
                }
            }
            let polled = lane.poll(&mut ends);
            queue.end(&mut ends);
            let polled = polled?;
            if lane.next_deadline().is_some_and(|deadline| deadline <= now) {
                return Err(Error::Broken);
            }
            if polled || moved {
                continue;
            }
            lane.pair().arm()?;
            let polled = lane.poll(&mut ends);
            queue.end(&mut ends);
            if polled? {
                continue;
            }
            let timeout =
                lane.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let readable = wait(&[lane.pair().event_fd(), wake.as_fd(), stream.as_fd()], timeout);
            if readable[2] && is_closed(stream) {
                return Err(Error::Broken);
            }
        }
        Ok(())
    }

    /// Deletes values, and their checksums. The unit comes back if the connection broke.
    fn delete(&self, unit: Unit, stream: &mut TcpStream, ends: &mut Vec<RemoteEnd>) -> Result<(), Unit> {
        let names: Vec<_> = unit.items.iter().map(|item| item.key.name()).collect();
        let mut deleted = delete(stream, &names, unit.deadline);
        if self.config.checksums && deleted.is_ok() {
            let names: Vec<Vec<u8>> =
                names.iter().map(|name| [&name[..], CHECKSUM_SUFFIX].concat()).collect();
            // Of values that others wrote there are none: only the number of values counts.
            deleted = delete(stream, &names, unit.deadline).and(deleted);
        }
        let outcome = match deleted {
            Ok(0) => RemoteOutcome::Missing,
            // Some may not have been there; which is not told, and now none is.
            Ok(_) => RemoteOutcome::Done,
            Err(ControlError::Refused(_)) => RemoteOutcome::Failed(RemoteFailure::Refused),
            Err(_) => return Err(unit),
        };
        unit.end(outcome, ends);
        Ok(())
    }
}

/// Whether the server has ended the TCP connection. It has nothing to say there otherwise.
fn is_closed(stream: &mut TcpStream) -> bool {
    !matches!(stream.read(&mut [0; 64]), Err(error) if matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
    ))
}
