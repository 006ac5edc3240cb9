//! Sets a lane up on a thread of its own: devices and servers take their time, and the I/O thread has none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;

use super::device::Device;
use crate::tcp::{Fault, FaultReason};
use crate::verbs_client::{ControlError, Lane, VerbsClientConfig, exchange};

/// How lanes of a client are made.
#[derive(Clone)]
pub(crate) struct LaneSettings {
    pub(crate) device: Arc<Device>,
    pub(crate) verbs: VerbsClientConfig,
    /// For the TCP connection. The exchange may take [`VerbsClientConfig::connect_timeout`].
    pub(crate) connect_timeout: Duration,
    /// What the server asks for before it serves; empty for none.
    pub(crate) token: Vec<u8>,
}

/// A connected lane, and the TCP connection whose end is its end.
pub(crate) struct ReadyLane {
    // Dropped first: the server learns of the end when the queue pair is gone.
    pub(crate) lane: Lane,
    pub(crate) control: TcpStream,
}

/// Connects to the server at `address`. Takes milliseconds, or as long as the timeouts say.
///
/// # Errors
/// What is wrong, with the device or with the server.
pub(crate) fn set_up(settings: &LaneSettings, address: SocketAddr) -> Result<ReadyLane, Fault> {
    let port = settings.device.open().map_err(|why| Fault::new(FaultReason::Rdma, why))?;
    let rdma = |error: crate::verbs::Error| Fault::new(FaultReason::Rdma, error.to_string());
    let mut lane = Lane::new(&port, &settings.verbs).map_err(rdma)?;
    let timeouts = (settings.connect_timeout, settings.verbs.connect_timeout);
    let control = exchange(address, lane.pair(), &settings.token, timeouts).map_err(fault_of)?;
    lane.pair().arm().map_err(rdma)?;
    control.set_nonblocking(true)?;
    Ok(ReadyLane { lane, control: TcpStream::from_std(control) })
}

fn fault_of(error: ControlError) -> Fault {
    let reason = match &error {
        ControlError::Io(error) => match error.kind() {
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => FaultReason::Timeout,
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::HostUnreachable => {
                FaultReason::Unreachable
            }
            _ => FaultReason::Lost,
        },
        ControlError::Refused(kvcache_wire::Status::UNAUTHORIZED) => FaultReason::Unauthorized,
        ControlError::Refused(_) => FaultReason::Rdma,
        ControlError::Info(_) => FaultReason::Malformed,
        ControlError::Verbs(_) => FaultReason::Rdma,
    };
    let text = match &error {
        ControlError::Refused(kvcache_wire::Status::UNAVAILABLE) => {
            "the server serves no RDMA, or has no queue pair left: start it where a device is (`kvcache serve --rdma required` \
             says what is missing), or use tcp://"
                .to_owned()
        }
        other => other.to_string(),
    };
    Fault::new(reason, text)
}
