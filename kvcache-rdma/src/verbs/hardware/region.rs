//! A memory region of a device.

use std::ptr::NonNull;
use std::sync::Arc;

use super::context::ProtectionDomain;
use crate::verbs::provider::RawRegion;
use crate::verbs::sys::abi;

pub(super) struct HardwareRegion {
    domain: Arc<ProtectionDomain>,
    raw: NonNull<abi::MemoryRegion>,
    local_key: u32,
    remote_key: u32,
}

// SAFETY: a handle that may be used on any thread.
unsafe impl Send for HardwareRegion {}
// SAFETY: shared references only read the two keys.
unsafe impl Sync for HardwareRegion {}

impl HardwareRegion {
    pub(super) fn new(domain: Arc<ProtectionDomain>, raw: NonNull<abi::MemoryRegion>) -> Self {
        // SAFETY: a region that the library has just made.
        let (local_key, remote_key) = unsafe { (raw.as_ref().local_key, raw.as_ref().remote_key) };
        Self { domain, raw, local_key, remote_key }
    }
}

impl RawRegion for HardwareRegion {
    fn local_key(&self) -> u32 {
        self.local_key
    }

    fn remote_key(&self) -> u32 {
        self.remote_key
    }

    fn deregister(&mut self) -> bool {
        // SAFETY: called once, as the trait says.
        unsafe { (self.domain.context.library.dereg_mr)(self.raw.as_ptr()) == 0 }
    }
}
