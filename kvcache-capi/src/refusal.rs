//! Why something cannot be opened or done, as a status.

use kvcache_assembly::Error;
use kvcache_core::block_cache::OpenError;
use kvcache_core::slab::SlabError;

use crate::status::Failure;
use crate::status::kvc_status::{KVC_BAD_CONFIG, KVC_BAD_HANDLE, KVC_MALFORMED, KVC_SYSTEM, KVC_UNAVAILABLE};

/// What the system or a device refuses has another code than what cannot be meant.
pub(crate) fn refused(error: Error) -> Failure {
    let status = match &error {
        Error::Cache(OpenError::Slab(SlabError::Config { .. })) | Error::Slab(SlabError::Config { .. }) => {
            KVC_BAD_CONFIG
        }
        Error::Cache(OpenError::Slab(_) | OpenError::Thread { .. }) | Error::Slab(_) | Error::Thread(_) => {
            KVC_SYSTEM
        }
        Error::RegistrationThread(_) | Error::RemoteThread(_) | Error::CopyThreads { .. } => KVC_SYSTEM,
        Error::Cuda(_) => KVC_UNAVAILABLE,
        Error::Plan(_) => KVC_MALFORMED,
        Error::StoreClosed => KVC_BAD_HANDLE,
        _ => KVC_BAD_CONFIG,
    };
    Failure::new(status, error.to_string())
}
