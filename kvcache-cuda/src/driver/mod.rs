//! What the copy engine needs of CUDA: one device's primary context, as a trait.
//!
//! Two things implement it: the driver library, loaded at run time, and a fake that executes streams lazily, in any
//! order that CUDA would allow, and checks what no GPU would report. The engine's logic is written against the trait
//! only, so that all of it runs where there is no GPU.
//!
//! Handles are plain numbers ([`Stream`], [`Event`]). All methods may be called from any thread; each makes the device's
//! context current for itself and leaves the calling thread's context as it was.
//!
//! The driver follows handles as pointers. To which device a stream belongs can be checked ([`Driver::check_stream`]);
//! whether a number is a living handle at all cannot, so callers answer for that.

mod cuda;
mod status;

use std::sync::Arc;

use kvcache_core::copy_engine::{CopyFailure, Piece};

use crate::kernels::{Kernel, PagedCopy, PieceCopy, TokenCopy};

pub use cuda::{BATCH_COPY_VERSION, CudaDriver, DRIVER_VERSION_MIN, Unavailable, devices, numa_node};

/// A stream: the driver's handle as a number. Zero is the legacy default stream, which others can hand to us and which is
/// none of ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stream(pub u64);

/// An event: the driver's handle as a number. It remembers the work of one stream at the time of its last
/// [`Driver::record_event`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event(pub u64);

/// A driver call that did not succeed. What it means for others: [`loses_context`](Self::loses_context),
/// [`is_transient`](Self::is_transient).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{operation} failed: {name} ({code})")]
pub struct DriverError {
    /// The driver's function.
    pub operation: &'static str,
    /// The status that it returned.
    pub code: i32,
    /// The status's name, for example `CUDA_ERROR_OUT_OF_MEMORY`, and after a colon what else is known of the cause.
    pub name: String,
}

impl From<DriverError> for CopyFailure {
    fn from(error: DriverError) -> Self {
        CopyFailure::Driver { operation: error.operation, code: error.code.into(), name: error.name }
    }
}

/// What is known of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Its number among those that the process may see.
    pub ordinal: u32,
    /// Its name, for example `NVIDIA H200`.
    pub name: String,
    /// Its address on the PCI bus in Linux's form, for example `0000:1b:00.0`.
    pub pci_address: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory in all.
    pub memory_bytes: u64,
    /// The driver's CUDA version as it tells it: 1000 × major + 10 × minor.
    pub driver_version: u32,
    /// Whether the device takes the host's own addresses of memory of [`Driver::register_host`]. Where it does not, as under
    /// WSL2, a batch copy of such memory would lose the context, so that there are none.
    pub host_addresses_are_shared: bool,
}

/// How soon a stream's kernels are scheduled against those of others. Copy engines do not look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Priority {
    /// Before others: an engine waits for it.
    High,
    /// After others.
    Low,
}

/// Host memory that the driver has allocated: pinned, and mapped into the device's address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostAllocation {
    /// Its address for the CPU.
    pub host: usize,
    /// Its address for the device's kernels. Mostly the same number, which nobody may rely on.
    pub device: u64,
}

/// When the driver may read the sources of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceOrder {
    /// When the stream's turn has come: sources that earlier work of the stream, or what it waits for, writes.
    Stream,
    /// At any time between the call and the end: sources that are complete and stay unchanged (host memory only).
    Any,
}

/// The arrays of one batch copy. The driver does not say when it has read them, so they live until the batch has ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Descriptors {
    /// First byte to write of each copy.
    pub destinations: Vec<u64>,
    /// First byte to read.
    pub sources: Vec<u64>,
    /// Bytes, never zero.
    pub sizes: Vec<usize>,
}

/// How many threads a kernel gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchShape {
    /// Blocks: as many multiprocessors at most are taken.
    pub blocks: u32,
    /// Threads of a block: 32 to 512, a multiple of 32.
    pub threads: u32,
}

/// A kernel's arguments, passed by value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arguments {
    /// For [`Kernel::CopyPieces`].
    Pieces(PieceCopy),
    /// For [`Kernel::GatherPages`] and [`Kernel::ScatterPages`].
    Pages(PagedCopy),
    /// For [`Kernel::GatherTokens`] and [`Kernel::ScatterTokens`].
    Tokens(TokenCopy),
}

/// One device, through its primary context, which it shares with the engine (torch).
///
/// # Errors
///
/// Every method returns the driver's status. Errors of work that was accepted (an address that no device can reach) arrive
/// later, at any call, and stay: the context is lost then, for the engine as well.
pub trait Driver: Send + Sync {
    /// The device.
    fn device(&self) -> &DeviceInfo;

    /// A stream of our own that does not wait for the legacy default stream.
    fn create_stream(&self, priority: Priority) -> Result<Stream, DriverError>;

    /// Gives a stream of [`create_stream`](Self::create_stream) back. What it holds still runs.
    fn destroy_stream(&self, stream: Stream);

    /// Whether a stream that somebody else made can be used here: it belongs to this device, and is not recording a CUDA
    /// graph (work added then would run at each replay of the graph, or break it).
    fn check_stream(&self, stream: Stream) -> Result<(), DriverError>;

    /// An event without timing.
    fn create_event(&self) -> Result<Event, DriverError>;

    /// Gives an event back. Waits that were submitted stay valid.
    fn destroy_event(&self, event: Event);

    /// The event stands for all that `stream` holds now, and no longer for what it stood for before.
    fn record_event(&self, event: Event, stream: Stream) -> Result<(), DriverError>;

    /// What `stream` gets from now on waits for what the event stands for now. Returns at once.
    fn wait_event(&self, stream: Stream, event: Event) -> Result<(), DriverError>;

    /// Whether what the event stands for has ended: then its writes are visible to the calling thread.
    fn query_event(&self, event: Event) -> Result<bool, DriverError>;

    /// Blocks until it has ended.
    fn synchronize_event(&self, event: Event) -> Result<(), DriverError>;

    /// Memory of the device, aligned to 256 bytes.
    fn allocate_device(&self, bytes: usize) -> Result<u64, DriverError>;

    /// Frees it, with nothing in flight on it.
    fn free_device(&self, address: u64);

    /// Pinned host memory that kernels can reach.
    fn allocate_host(&self, bytes: usize) -> Result<HostAllocation, DriverError>;

    /// Frees it by its address for the CPU, with nothing in flight on it.
    fn free_host(&self, host: usize);

    /// Pins `base..base + bytes` and maps it for kernels; returns its address for them. Slow: about 0.1 s to 1 s a GiB.
    ///
    /// # Safety
    /// The range is mapped memory of this process until [`unregister_host`](Self::unregister_host) or the end of the context.
    unsafe fn register_host(&self, base: usize, bytes: usize) -> Result<u64, DriverError>;

    /// Undoes [`register_host`](Self::register_host) of the range that starts at `base`, with nothing in flight on it.
    fn unregister_host(&self, base: usize);

    /// One copy between any memories, in the stream's order. Where the host's side is not pinned the call may block until all
    /// earlier work of the stream and the copy itself have ended.
    ///
    /// # Safety
    /// Both ranges stay valid, the source unchanged and the destination untouched by others, until the copy has ended.
    unsafe fn copy(&self, piece: Piece, stream: Stream) -> Result<(), DriverError>;

    /// Whether [`copy_batch`](Self::copy_batch) is there: drivers of CUDA 12.8 and newer, on devices that take the host's
    /// addresses ([`DeviceInfo::host_addresses_are_shared`]).
    fn has_batch_copy(&self) -> bool;

    /// Many copies at the cost of one call, in no order among themselves.
    ///
    /// # Safety
    /// As [`copy`](Self::copy) for each; host sides are pinned; `descriptors` is kept (its count of owners above zero, its
    /// content unchanged) until the batch has ended; the three arrays are of one length, which is not zero.
    unsafe fn copy_batch(
        &self,
        descriptors: &Arc<Descriptors>,
        order: SourceOrder,
        stream: Stream,
    ) -> Result<(), DriverError>;

    /// Loads the kernels' image; needed once before [`launch`](Self::launch). Fails where the driver is older than the image.
    fn load_kernels(&self) -> Result<(), DriverError>;

    /// Launches a kernel.
    ///
    /// # Safety
    /// The tables that the arguments name, and all memory that these name, are readable or writable by the device until the
    /// launch has ended, and the arguments are of the kernel's form.
    unsafe fn launch(
        &self,
        kernel: Kernel,
        arguments: &Arguments,
        shape: LaunchShape,
        stream: Stream,
    ) -> Result<(), DriverError>;
}
