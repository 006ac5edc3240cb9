//! Waiting for events of several queue pairs, sockets and other threads at once.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::time::Duration;

/// Wakes a thread that [waits](wait). Wakes before the wait count.
#[derive(Debug)]
pub(crate) struct Wake {
    event: File,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: makes a new descriptor or fails.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        Ok(Self { event: unsafe { File::from_raw_fd(fd) } })
    }

    pub(crate) fn wake(&self) {
        // Refused only when the counter is at its limit, and then it wakes anyway.
        let _ = (&self.event).write(&1u64.to_ne_bytes());
    }

    /// Forgets earlier wakes.
    pub(crate) fn reset(&self) {
        // An error says that there was none.
        let _ = (&self.event).read(&mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Which of the descriptors are readable (or closed by the peer), as soon as one is; none after the timeout.
pub(crate) fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Vec<bool> {
    let mut entries: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    // Rounded up, so that a wait for the rest of a millisecond does not become none.
    let timeout_ms = timeout
        .map_or(-1, |timeout| i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
    // SAFETY: as many entries as told, of descriptors that are borrowed. An interruption counts as the end of the wait.
    let count = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
    entries.iter().map(|entry| count > 0 && entry.revents != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_wait_counts_once() {
        let [one, other] = [Wake::new().unwrap(), Wake::new().unwrap()];
        other.wake();
        other.wake();
        let fds = [one.as_fd(), other.as_fd()];
        assert_eq!(wait(&fds, None), [false, true]);
        other.reset();
        assert_eq!(wait(&fds, Some(Duration::ZERO)), [false, false]);
    }
}
