//! Notices the end of the process at the other end of a Unix socket. A leaf: the one place with process descriptors.
//!
//! A process that was forked from a client has copies of its sockets, so that its connections stay open when it dies, and
//! with them its leases. It has no copy of the mapping: whoever leased is the one who writes. So its end is the end of what
//! the connection has to say.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

/// The reading half of a connection, which ends when the process that connected does.
#[derive(Debug)]
pub(super) struct PeerReader {
    half: OwnedReadHalf,
    /// `None` where the system cannot say, or has said so.
    process: Option<AsyncFd<OwnedFd>>,
}

impl PeerReader {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        let process = process_of(half.as_ref())
            // SAFETY: who owns a descriptor returns the same one, open, for as long as it lives.
            .and_then(|process| unsafe { Ok(AsyncFd::register_with_interest(process, Interest::READABLE)?) })
            .inspect_err(|error| log::debug!("the end of a client's process will not be noticed: {error}"))
            .ok();
        Self { half, process }
    }
}

impl AsyncRead for PeerReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.half).poll_read(cx, buffer);
        if read.is_ready() {
            return read;
        }
        match &self.process {
            Some(process) if process.poll_read_ready(cx).is_ready() => {}
            _ => return Poll::Pending,
        }
        self.process = None;
        // What it has sent can still be read, and then comes the end.
        SockRef::from(self.half.as_ref()).shutdown(std::net::Shutdown::Read)?;
        Pin::new(&mut self.half).poll_read(cx, buffer)
    }
}

/// A descriptor that becomes readable when the peer's process, all threads of it, has ended.
fn process_of(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut descriptor: RawFd = -1;
    let mut bytes = size_of::<RawFd>() as libc::socklen_t;
    let place = (&raw mut descriptor).cast();
    // SAFETY: `descriptor` is as long as `bytes` says, and both live until the call returns.
    let status = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERPIDFD, place, &raw mut bytes)
    };
    if status != 0 {
        // Linux before 6.5. The number may be another process's by now if the peer has ended already; then the connection
        // ends with its last descriptor, as everywhere.
        let pid = stream.peer_cred()?.pid().filter(|pid| *pid > 0);
        let pid = pid.ok_or_else(|| io::Error::other("its process is in another namespace"))?;
        // SAFETY: takes numbers.
        let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        descriptor = RawFd::try_from(opened).unwrap_or(-1);
    }
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, closed when a program is executed, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
