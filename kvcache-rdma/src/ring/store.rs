//! Values on the ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::remote::{RemoteEnd, RemoteStore, RemoteTransfer};

use kvcache_core::store::SlotMemory;
use parking_lot::Mutex;

use super::config::{RingConfig, RingOpenError};
use crate::rdma::{Device, SlabRegistration};
use crate::tcp::{IoThread, RingStats};

/// Moves values between memory and the servers of a ring. One thread, started here; calls cost a few microseconds.
///
/// Dropping it abandons what has not ended: its memory is out of use when the drop returns, which takes milliseconds.
pub struct RingStore {
    // Dropped first: after it no device touches memory for it.
    thread: IoThread,
    device: Option<Arc<Device>>,
    registration: Mutex<Option<SlabRegistration>>,
}

impl RingStore {
    /// Opens a client. Does not wait for the network: servers that cannot be reached are misses.
    ///
    /// # Errors
    /// [`RingOpenError`] names the value and the remedy.
    pub fn open(config: &RingConfig) -> Result<Self, RingOpenError> {
        let device = config.rdma.as_ref().map(|port| Arc::new(Device::new(port)));
        let thread = config.start("kvcache-ring", device.clone())?;
        Ok(Self { thread, device, registration: Mutex::default() })
    }

    /// Registers slots with the RDMA device, in the background: values in them are moved without registering each. Without
    /// RDMA it does nothing, and so with slots that another rank fills. Servers can read and write all of what is
    /// registered while they are connected to, which is how their protocol works.
    ///
    /// # Errors
    /// The system refuses a thread.
    ///
    /// # Safety
    /// The addresses of usable slots are mapped, readable and writable as long as `slots` or a clone of it lives.
    pub unsafe fn register(&self, slots: Arc<dyn SlotMemory>) -> std::io::Result<()> {
        let Some(device) = self.device.as_ref().filter(|_| !slots.is_replica()) else { return Ok(()) };
        // SAFETY: the caller's duty is the same.
        let registration = unsafe { SlabRegistration::start(Arc::clone(device), slots) }?;
        *self.registration.lock() = Some(registration);
        Ok(())
    }

    /// Counters, as of now. Waits for the I/O thread, well below a millisecond unless the machine is busy.
    pub fn stats(&self) -> RingStats {
        self.thread.stats()
    }
}

impl RemoteStore for RingStore {
    unsafe fn submit(&self, batch: &[RemoteTransfer], patience: Duration) {
        // SAFETY: the caller's duty is the same.
        unsafe { self.thread.submit(batch, patience) }
    }

    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        self.thread.poll_ends(ended);
    }

    fn wait(&self, timeout: Duration) -> bool {
        self.thread.wait(timeout)
    }

    fn last_arrival(&self) -> Option<Instant> {
        self.thread.last_arrival()
    }

    fn cancel(&self, tickets: &[u64]) {
        self.thread.cancel(tickets);
    }
}
