//! What can go wrong between us and a device.

use std::io;

/// Why this process has no RDMA. Not a fault: TCP is used instead.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// libibverbs cannot be opened.
    #[error(
        "RDMA unavailable: {reason}; install it (Debian: libibverbs1 ibverbs-providers, Fedora: libibverbs)"
    )]
    NoLibrary {
        /// What the system's loader says.
        reason: String,
    },
    /// The library is older than all that is supported.
    #[error("RDMA unavailable: libibverbs.so.1 has no function {missing}; it is older than rdma-core 15")]
    OldLibrary {
        /// The first function that was not found.
        missing: &'static str,
    },
    /// The library works, and knows of no device.
    #[error(
        "RDMA unavailable: no devices; `ls /sys/class/infiniband` lists what the kernel has, and the library needs the \
         device's driver beside it (Debian: ibverbs-providers) and /dev/infiniband in this container"
    )]
    NoDevices,
    /// Asking for devices failed.
    #[error("RDMA unavailable: the list of devices cannot be read: {reason}")]
    NoList {
        /// What the system says.
        reason: String,
    },
}

/// Something that was asked of a device and did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no RDMA here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The device, port or GID that was asked for is not there or cannot be used.
    #[error(transparent)]
    Selection(#[from] super::selection::SelectionError),
    /// A verb failed.
    #[error("{verb} failed for {subject}: {source}{}", remedy(verb, source))]
    Verb {
        /// The verb, by its C name.
        verb: &'static str,
        /// What it was called for, with the numbers.
        subject: String,
        /// What the driver says.
        source: io::Error,
    },
    /// The library lacks an optional verb.
    #[error("{verb} is missing in this libibverbs; {remedy}")]
    MissingVerb {
        /// The verb, by its C name.
        verb: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// More work requests than the queue pair was made for. Nothing of the call was posted.
    #[error("{wanted} more work requests do not fit: {used} of {depth} are in use")]
    QueueFull {
        /// Requests of the call.
        wanted: usize,
        /// Requests that have not completed.
        used: usize,
        /// Requests that the queue holds.
        depth: usize,
    },
    /// A request has more segments than the queue pair was made for, or is longer than a message may be.
    #[error(
        "a work request of {segments} segments and {bytes} bytes; the queue pair takes {segments_max} segments and {bytes_max} bytes"
    )]
    TooLarge {
        /// Segments of the request.
        segments: usize,
        /// Bytes of the request.
        bytes: u64,
        /// Segments that a request may have.
        segments_max: usize,
        /// Bytes that a request may have.
        bytes_max: u64,
    },
    /// A range that is not inside of a registered region.
    #[error("bytes {start}..{end} are outside of a region of {bytes} bytes")]
    OutsideRegion {
        /// First byte.
        start: usize,
        /// Byte after the last.
        end: usize,
        /// Bytes of the region.
        bytes: usize,
    },
    /// The peer's address cannot be reached from this port.
    #[error("the peer cannot be reached: {0}")]
    Peer(String),
    /// The queue pair failed earlier and takes no work.
    #[error("the queue pair is in its error state")]
    Broken,
}

fn remedy(verb: &str, source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOMEM) if verb.contains("reg_mr") || verb.contains("create_") => {
            "; the limit of locked memory is the usual reason: raise it (`ulimit -l unlimited`, `docker run --ulimit memlock=-1`, \
             or the capability IPC_LOCK)"
        }
        Some(libc::EFAULT) if verb.contains("reg_mr") => "; the memory must be mapped and writable",
        _ => "",
    }
}

/// Why a work request did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Status {
    /// A message was longer than the buffer that was waiting for it.
    LocalLength,
    /// The local key does not cover the memory.
    LocalProtection,
    /// The queue pair was in its error state: the request was not tried, or not to its end.
    Flushed,
    /// The peer found the request malformed; also a message that did not fit its buffer.
    RemoteInvalidRequest,
    /// The peer's region does not allow the access.
    RemoteAccess,
    /// The peer could not finish the request.
    RemoteOperation,
    /// The peer did not answer.
    RetriesExceeded,
    /// The peer had no buffer for a message, for too long.
    RnrRetriesExceeded,
    /// Any other status of the library.
    Other(i32),
}

impl Status {
    /// The status behind a number of `enum ibv_wc_status`; `None` is success.
    pub(in crate::verbs) fn of_number(number: i32) -> Option<Status> {
        Some(match number {
            0 => return None,
            1 => Status::LocalLength,
            4 => Status::LocalProtection,
            5 => Status::Flushed,
            9 => Status::RemoteInvalidRequest,
            10 => Status::RemoteAccess,
            11 => Status::RemoteOperation,
            12 => Status::RetriesExceeded,
            13 => Status::RnrRetriesExceeded,
            other => Status::Other(other),
        })
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::LocalLength => "a message was longer than its buffer",
            Status::LocalProtection => "the local memory is not registered",
            Status::Flushed => "flushed: the queue pair failed",
            Status::RemoteInvalidRequest => "the peer refused the request as invalid",
            Status::RemoteAccess => "the peer's memory does not allow the access",
            Status::RemoteOperation => "the peer failed",
            Status::RetriesExceeded => "the peer does not answer",
            Status::RnrRetriesExceeded => "the peer had no buffer for the message",
            Status::Other(number) => return write!(f, "completion status {number}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_suspected_where_it_is_the_usual_reason() {
        let error = |verb| Error::Verb {
            verb,
            subject: "1 GiB".to_owned(),
            source: io::Error::from_raw_os_error(libc::ENOMEM),
        };
        assert!(error("ibv_reg_mr").to_string().contains("ulimit -l unlimited"));
        assert!(!error("ibv_query_port").to_string().contains("ulimit"));
    }

    #[test]
    fn every_number_has_a_status_and_only_zero_is_success() {
        assert_eq!(Status::of_number(0), None);
        assert_eq!(Status::of_number(5), Some(Status::Flushed));
        assert_eq!(Status::of_number(21), Some(Status::Other(21)));
        assert_eq!(Status::of_number(-3), Some(Status::Other(-3)));
    }
}
