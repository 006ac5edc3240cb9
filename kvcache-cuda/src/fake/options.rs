//! What a fake device is like.

use std::sync::Arc;

use super::FakeDevice;
use crate::driver::DeviceInfo;

/// Choices for a [`FakeDevice`]; made by [`FakeDevice::options`].
#[derive(Clone, Debug)]
#[must_use]
pub struct FakeOptions {
    pub(super) seed: u64,
    pub(super) strict: bool,
    pub(super) background: bool,
    pub(super) batch_copy: bool,
    pub(super) queue_depth: usize,
    pub(super) device: DeviceInfo,
}

impl Default for FakeOptions {
    fn default() -> Self {
        let device = DeviceInfo {
            ordinal: 0,
            name: "fake device".into(),
            // No bus has such a function, so nothing is found in sysfs.
            pci_address: "ffff:ff:1f.7".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            memory_bytes: 1 << 30,
            driver_version: 13_000,
            host_addresses_are_shared: true,
        };
        Self { seed: 0, strict: false, background: false, batch_copy: true, queue_depth: usize::MAX, device }
    }
}

impl FakeOptions {
    /// Decides all that CUDA leaves open: what runs when, in which parts.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The call that finds a violation panics with its text (or the next call, where the background thread found it).
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// A thread runs what is pending, a few steps at a time with pauses below a millisecond. Runs are not reproducible then.
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Whether the driver has batch copies, as those of CUDA 12.8 and newer do. Sets the driver's version to go with it.
    pub fn batch_copy(mut self, batch_copy: bool) -> Self {
        self.batch_copy = batch_copy;
        self.device.driver_version = if batch_copy { 13_000 } else { 12_040 };
        self
    }

    /// Operations that a stream holds. Whoever submits more is held until there is room, as a driver does, and
    /// [counted](FakeDevice::blocked_submissions). Otherwise there is no bound.
    pub fn queue_depth(mut self, operations: usize) -> Self {
        self.queue_depth = operations.max(1);
        self
    }

    /// What [`Driver::device`](crate::driver::Driver::device) says. `memory_bytes` bounds what can be allocated, and without
    /// `host_addresses_are_shared` there are no batch copies.
    pub fn device(mut self, device: DeviceInfo) -> Self {
        self.device = device;
        self
    }

    /// The device.
    pub fn build(self) -> Arc<FakeDevice> {
        FakeDevice::with(self)
    }
}
