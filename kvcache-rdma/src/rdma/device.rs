//! The port that a client of the ring uses, opened once, and the memory that is registered there.

use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::verbs::{Access, Error, Memory, Port, PortWish, Rdma, Region};

/// Which port a client uses.
#[derive(Clone, Debug)]
pub enum RdmaPort {
    /// One that fits the wish, opened when it is needed.
    Wish(PortWish),
    /// This one.
    Opened(Port),
}

/// A port with regions. Shared by the I/O thread, threads that set lanes up, and the one that registers a slab.
pub(crate) struct Device {
    wish: PortWish,
    port: OnceLock<Port>,
    /// What was wrong when it was last opened in vain, and until when nobody tries again. Held while opening.
    failed: Mutex<Option<(String, Instant)>>,
    /// Regions that stay: the slab's, a piece each.
    regions: RwLock<Vec<Arc<Region>>>,
    refused: Mutex<Option<String>>,
}

/// Where a value lies: address and length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ItemMemory {
    pub(crate) address: usize,
    pub(crate) bytes: usize,
}

/// How long a port that could not be opened is left alone. Devices and their links come and go by hand.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

impl Device {
    pub(crate) fn new(port: &RdmaPort) -> Self {
        let (wish, port) = match port {
            RdmaPort::Wish(wish) => (wish.clone(), OnceLock::new()),
            RdmaPort::Opened(port) => (PortWish::default(), OnceLock::from(port.clone())),
        };
        Self { wish, port, failed: Mutex::default(), regions: RwLock::default(), refused: Mutex::default() }
    }

    /// The port, opened if need be, or why there is none. May take long: not for the I/O thread.
    pub(crate) fn open(&self) -> Result<Port, String> {
        let mut failed = self.failed.lock();
        if let Some(port) = self.port.get() {
            return Ok(port.clone());
        }
        if let Some((why, until)) = &*failed
            && Instant::now() < *until
        {
            return Err(why.clone());
        }
        match Rdma::load().map_err(Error::from).and_then(|rdma| rdma.open(&self.wish)) {
            Ok(port) => Ok(self.port.get_or_init(|| port).clone()),
            Err(error) => {
                let why = match &error {
                    Error::Unavailable(_) => error.to_string(),
                    _ => format!("RDMA unavailable: {error}"),
                };
                *failed = Some((why.clone(), Instant::now() + REOPEN_AFTER));
                Err(why)
            }
        }
    }

    /// The region that all of `memory` lies in, if it is registered.
    pub(crate) fn region_of(&self, memory: ItemMemory) -> Option<Arc<Region>> {
        self.regions
            .read()
            .iter()
            .find(|region| region.slice_at(memory.address, memory.bytes).is_ok())
            .cloned()
    }

    /// Registers memory for one request: tens of microseconds for each MiB that is in memory already.
    ///
    /// `None` if the device refuses, which [`problem`](Self::problem) tells.
    ///
    /// # Safety
    /// The memory is mapped, readable and writable until the region is dropped.
    pub(crate) unsafe fn register_for_request(&self, memory: ItemMemory) -> Option<Arc<Region>> {
        // Whoever has a lane has opened the port.
        let port = self.port.get()?;
        let base = NonNull::new(memory.address as *mut u8)?;
        // SAFETY: the caller keeps it mapped until the region goes.
        let memory = unsafe { Memory::new(base, memory.bytes, Arc::new(())) };
        self.register(port, memory).map(Arc::new)
    }

    /// Registers memory that stays, for values of any server.
    pub(crate) fn register_slab(&self, port: &Port, memory: Memory) -> bool {
        let region = self.register(port, memory);
        let registered = region.is_some();
        self.regions.write().extend(region.map(Arc::new));
        registered
    }

    fn register(&self, port: &Port, memory: Memory) -> Option<Region> {
        let registered = port.register(memory, Access::Remote);
        let mut refused = self.refused.lock();
        match registered {
            Ok(region) => {
                *refused = None;
                Some(region)
            }
            Err(error) => {
                *refused = Some(error.to_string());
                None
            }
        }
    }

    /// Why memory could not be registered the last time, if it could not.
    pub(crate) fn problem(&self) -> Option<String> {
        self.refused.lock().clone()
    }
}
