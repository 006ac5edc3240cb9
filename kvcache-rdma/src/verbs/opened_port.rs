//! An opened port of a device, from which everything else is made.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::error::Error;
use super::memory::{Access, Memory, Region};
use super::port::{Limits, LinkLayer, Mtu};
use super::provider::RawPort;
use super::queue_pair::{QueuePair, QueuePairConfig};

/// An opened port with one protection domain: its regions and queue pairs work with each other. Clones share it.
#[derive(Clone)]
pub struct Port {
    raw: Arc<dyn RawPort>,
}

impl Port {
    pub(in crate::verbs) fn new(raw: Arc<dyn RawPort>) -> Self {
        Self { raw }
    }

    /// Device, port and address, for people.
    pub fn name(&self) -> String {
        self.raw.description().name
    }

    /// What is below RDMA.
    pub fn link_layer(&self) -> LinkLayer {
        self.raw.description().link_layer
    }

    /// The largest packet payload of the link.
    pub fn active_mtu(&self) -> Mtu {
        self.raw.description().active_mtu
    }

    /// What a queue pair can do here.
    pub fn limits(&self) -> Limits {
        self.raw.description().limits
    }

    /// Pins memory and makes it known to the device. Takes about a second a GiB for the first touch of pages.
    ///
    /// # Errors
    /// [`Error::Verb`], mostly because of the limit of locked memory; the memory's owner is released.
    pub fn register(&self, memory: Memory, access: Access) -> Result<Region, Error> {
        // SAFETY: the region keeps the memory's owner until it was deregistered.
        let raw = unsafe { self.raw.register(&memory, access) }?;
        Ok(Region::new(raw, memory))
    }

    /// Makes GPU memory known: `memory` is its range of device addresses, `fd` a dma-buf of the allocation, and `offset`
    /// where the range begins in it.
    ///
    /// # Errors
    /// [`Error::MissingVerb`] with libraries before rdma-core 34; [`Error::Verb`] where kernel, driver or device cannot
    /// do it.
    pub fn register_dmabuf(
        &self,
        memory: Memory,
        fd: BorrowedFd<'_>,
        offset: u64,
        access: Access,
    ) -> Result<Region, Error> {
        // SAFETY: as above.
        let raw = unsafe { self.raw.register_dmabuf(&memory, fd, offset, access) }?;
        Ok(Region::new(raw, memory))
    }

    /// A queue pair that is not connected yet. What the device cannot do is cut to its limits.
    ///
    /// # Errors
    /// [`Error::Verb`]: out of queue pairs, or of locked memory for the queues.
    pub fn queue_pair(&self, config: &QueuePairConfig) -> Result<QueuePair, Error> {
        let description = self.raw.description();
        let config = config.within(&description.limits);
        let raw = self.raw.create_queue_pair(&config)?;
        // Packets of an earlier connection with the same numbers must not pass for ours.
        let packet_sequence = RandomState::new().hash_one(raw.number()) as u32;
        Ok(QueuePair::new(raw, description, config, packet_sequence))
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Port {{ {} }}", self.name())
    }
}
