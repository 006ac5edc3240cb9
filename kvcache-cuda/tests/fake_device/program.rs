//! What the programs of these tests are made of.

use std::ops::Range;
use std::sync::Arc;

use kvcache_core::copy_engine::Piece;
use kvcache_cuda::driver::{Descriptors, Driver, DriverError, Event, Priority, SourceOrder, Stream};
use kvcache_cuda::fake::FakeDevice;

/// Bytes of most ranges here.
pub(crate) const BYTES: usize = 96;

/// A range of memory that lives as long as this does: an engine's tensor, or memory of the process.
pub(crate) struct Tensor(*mut [u8]);

impl Tensor {
    pub(crate) fn new(bytes: usize) -> Self {
        // Words, for the alignment that tables need.
        let words = vec![0u64; bytes.div_ceil(8)].into_boxed_slice();
        let start = Box::into_raw(words).cast::<u8>();
        Self(std::ptr::slice_from_raw_parts_mut(start, bytes))
    }

    /// Declared as memory of the device.
    pub(crate) fn on(device: &FakeDevice, bytes: usize) -> Self {
        let tensor = Self::new(bytes);
        device.add_device_memory(tensor.at(), bytes);
        tensor
    }

    pub(crate) fn at(&self) -> usize {
        self.0.cast::<u8>() as usize
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.at()..self.at() + self.0.len()
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let words = std::ptr::slice_from_raw_parts_mut(self.0.cast::<u64>(), self.0.len().div_ceil(8));
        // SAFETY: these are the words that `new` made a box of.
        drop(unsafe { Box::from_raw(words) });
    }
}

/// The bytes at an address that the test knows to be memory of its own or of the fake.
pub(crate) fn bytes(at: usize, count: usize) -> Vec<u8> {
    // SAFETY: callers name live memory; no other thread writes to it.
    (0..count).map(|i| unsafe { ((at + i) as *const u8).read_volatile() }).collect()
}

/// Writes bytes there.
pub(crate) fn fill(at: usize, content: &[u8]) {
    for (i, byte) in content.iter().enumerate() {
        // SAFETY: callers name live memory; no other thread touches it.
        unsafe { ((at + i) as *mut u8).write_volatile(*byte) };
    }
}

/// A work of the engine that fills a range.
pub(crate) fn filling(range: Range<usize>, byte: u8) -> impl FnOnce() + Send + 'static {
    move || fill(range.start, &vec![byte; range.len()])
}

/// The calls that tests make, with less to write.
pub(crate) trait Calls: Driver {
    fn stream(&self) -> Stream {
        self.create_stream(Priority::High).unwrap()
    }

    /// Pinned memory of [`BYTES`] bytes, filled.
    fn pinned(&self, byte: u8) -> usize {
        let host = self.allocate_host(BYTES).unwrap().host;
        fill(host, &[byte; BYTES]);
        host
    }

    fn copies(&self, src: usize, dst: usize, stream: Stream) -> Result<(), DriverError> {
        // SAFETY: tests name memory that lives to the end of the test, or do what the fake is to find out.
        unsafe { self.copy(Piece { src, dst, bytes: BYTES }, stream) }
    }

    fn batch(
        &self,
        pieces: &[(usize, usize)],
        order: SourceOrder,
        stream: Stream,
    ) -> Result<Arc<Descriptors>, DriverError> {
        let descriptors = Arc::new(Descriptors {
            destinations: pieces.iter().map(|(_, dst)| *dst as u64).collect(),
            sources: pieces.iter().map(|(src, _)| *src as u64).collect(),
            sizes: vec![BYTES; pieces.len()],
        });
        // SAFETY: as `copies`.
        unsafe { self.copy_batch(&descriptors, order, stream) }?;
        Ok(descriptors)
    }

    /// A new event, recorded.
    fn recorded(&self, stream: Stream) -> Event {
        let event = self.create_event().unwrap();
        self.record_event(event, stream).unwrap();
        event
    }
}

impl Calls for FakeDevice {}
