//! Verbs without a device: queue pairs in one process that keep the rules of reliable connections.
//!
//! What is true of a device is true here: requests of a queue pair run in order and complete in order; a message waits for
//! a receive of the peer (or fails, if it may not wait); a message that is too long, a wrong key and a range outside of
//! its region fail the request and both queue pairs; a queue pair in its error state flushes everything, answers nobody, and
//! takes nothing. A peer that is gone or failed does not answer.
//!
//! There are no threads: work is done within the calls that make it possible, so a test sees the same order each time.

#[cfg(test)]
mod tests;
mod world;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Error;
use super::memory::{Access, Memory};
use super::opened_port::Port;
use super::port::{Limits, LinkLayer, Mtu};
use super::provider::{
    PortDescription, RawCompletion, RawPort, RawQueuePair, RawRegion, RawSegment, RawSend,
};
use super::queue_pair::{PeerAddress, QueuePairConfig};
use world::{FakeRegion, World};

/// A network of fake ports. Clones are the same network.
#[derive(Clone, Default)]
pub struct FakeNetwork {
    world: Arc<Mutex<World>>,
}

impl FakeNetwork {
    /// A network with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A port on the network, with a protection domain of its own.
    pub fn port(&self) -> Port {
        let domain = lock(&self.world).new_domain();
        Port::new(Arc::new(FakePort { world: Arc::clone(&self.world), domain }))
    }

    /// Lets only `count` more requests run, on all queue pairs together; `None` for all. What may not run stays in
    /// flight, as on a network that has stopped. Flushing goes on.
    pub fn allow(&self, count: Option<u64>) {
        lock(&self.world).allow(count);
    }

    /// The next post of requests, on any queue pair, takes so many and then fails, as when a device's queue is full.
    pub fn cut_next_post(&self, taken: usize) {
        lock(&self.world).cut_next_post(taken);
    }

    /// Requests that have run since the network was made.
    pub fn requests_run(&self) -> u64 {
        lock(&self.world).requests_run()
    }

    /// Bytes that are registered at this moment, over all ports.
    pub fn registered_bytes(&self) -> usize {
        lock(&self.world).registered_bytes()
    }

    /// Queue pairs at this moment, over all ports.
    pub fn queue_pairs(&self) -> usize {
        lock(&self.world).queue_pairs()
    }
}

impl std::fmt::Debug for FakeNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeNetwork").finish_non_exhaustive()
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

struct FakePort {
    world: Arc<Mutex<World>>,
    domain: u32,
}

impl RawPort for FakePort {
    fn description(&self) -> PortDescription {
        let mut gid = [0; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&self.domain.to_be_bytes());
        gid[12] = 127;
        PortDescription {
            name: format!("fake{}", self.domain),
            link_layer: LinkLayer::Ethernet,
            gid,
            lid: 0,
            active_mtu: Mtu::Bytes4096,
            message_bytes_max: 1 << 30,
            limits: Limits {
                queue_depth_max: 16_384,
                segments_max: 32,
                read_segments_max: 32,
                completions_max: 32_767,
                reads_as_initiator_max: 128,
                reads_as_target_max: 128,
            },
        }
    }

    unsafe fn register(&self, memory: &Memory, access: Access) -> Result<Box<dyn RawRegion>, Error> {
        let region = FakeRegion {
            domain: self.domain,
            address: memory.address(),
            bytes: memory.bytes(),
            remote: access == Access::Remote,
        };
        let key = lock(&self.world).add_region(region);
        Ok(Box::new(RegisteredFake { world: Arc::clone(&self.world), key }))
    }

    unsafe fn register_dmabuf(
        &self,
        _memory: &Memory,
        _fd: BorrowedFd<'_>,
        _offset: u64,
        _access: Access,
    ) -> Result<Box<dyn RawRegion>, Error> {
        Err(Error::MissingVerb { verb: "ibv_reg_dmabuf_mr", remedy: "the fake has host memory only" })
    }

    fn create_queue_pair(&self, config: &QueuePairConfig) -> Result<Box<dyn RawQueuePair>, Error> {
        let (number, event) = lock(&self.world).add_queue_pair(self.domain, config).map_err(|source| {
            Error::Verb { verb: "eventfd", subject: "a fake queue pair".to_owned(), source }
        })?;
        Ok(Box::new(FakeQueuePair { world: Arc::clone(&self.world), number, event }))
    }
}

struct RegisteredFake {
    world: Arc<Mutex<World>>,
    key: u32,
}

impl RawRegion for RegisteredFake {
    fn local_key(&self) -> u32 {
        self.key
    }

    fn remote_key(&self) -> u32 {
        self.key
    }

    fn deregister(&mut self) -> bool {
        lock(&self.world).remove_region(self.key);
        true
    }
}

struct FakeQueuePair {
    world: Arc<Mutex<World>>,
    number: u32,
    event: Arc<std::fs::File>,
}

impl RawQueuePair for FakeQueuePair {
    fn number(&self) -> u32 {
        self.number
    }

    fn connect(&mut self, peer: &PeerAddress, _local_psn: u32) -> Result<(), Error> {
        lock(&self.world).connect(self.number, peer.queue_pair)
    }

    unsafe fn post_sends(
        &mut self,
        sends: &[RawSend],
        segments: &[RawSegment],
    ) -> Result<(), (usize, Error)> {
        // SAFETY: the caller's: the memory stays until completion or destruction, and the world forgets requests at both.
        let taken = unsafe { lock(&self.world).post_sends(self.number, sends, segments) };
        if taken == sends.len() {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
        Err((taken, Error::Verb { verb: "post_send", subject: "a fake queue pair".to_owned(), source }))
    }

    unsafe fn post_receive(&mut self, id: u64, segment: Option<RawSegment>) -> Result<(), Error> {
        // SAFETY: as above.
        unsafe { lock(&self.world).post_receive(self.number, id, segment) };
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<RawCompletion>, max: usize) -> Result<(), Error> {
        lock(&self.world).poll(self.number, completions, max);
        Ok(())
    }

    fn arm(&mut self) -> Result<(), Error> {
        lock(&self.world).arm(self.number);
        Ok(())
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn fail(&mut self) -> Result<(), Error> {
        lock(&self.world).fail(self.number);
        Ok(())
    }

    fn destroy(&mut self) -> bool {
        lock(&self.world).destroy(self.number);
        true
    }
}
