//! A Unix socket's writing half that can send descriptors. A leaf: the one place with control messages.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::unix::OwnedWriteHalf;

/// Descriptors on their way: they leave with the next bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passing(Arc<Mutex<VecDeque<[OwnedFd; 2]>>>);

impl Passing {
    pub(crate) fn push(&self, descriptors: [OwnedFd; 2]) {
        self.0.lock().push_back(descriptors);
    }
}

/// The writing half.
#[derive(Debug)]
pub(super) struct PassingWriter {
    half: OwnedWriteHalf,
    passing: Passing,
}

impl PassingWriter {
    pub(super) fn new(half: OwnedWriteHalf, passing: Passing) -> Self {
        Self { half, passing }
    }
}

impl AsyncWrite for PassingWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let passing = self.passing.clone();
        let mut queue = passing.0.lock();
        let Some(descriptors) = queue.front() else {
            drop(queue);
            return Pin::new(&mut self.half).poll_write_vectored(cx, pieces);
        };
        let stream = self.half.as_ref();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let send = || send(stream.as_raw_fd(), pieces, descriptors);
            match stream.try_io(Interest::WRITABLE, send) {
                Ok(sent) => {
                    queue.pop_front();
                    return Poll::Ready(Ok(sent));
                }
                // Readiness was stale and is forgotten now: the next look registers for the next one.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(cx)
    }
}

/// Room for one control message with two descriptors, aligned as its header must be.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

// SAFETY: arithmetic on a length.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE(DESCRIPTORS_BYTES) } as usize;
const DESCRIPTORS_BYTES: u32 = 2 * size_of::<RawFd>() as u32;

/// Sends bytes, and with the first of them two descriptors, which stay ours too.
fn send(socket: RawFd, pieces: &[IoSlice<'_>], descriptors: &[OwnedFd; 2]) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let numbers = [descriptors[0].as_raw_fd(), descriptors[1].as_raw_fd()];
    // SAFETY: a message of zeros is one without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // The layout of `IoSlice` is that of `iovec`, and sending writes to neither.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len() as _;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the control buffer is aligned and has the length that `CMSG_SPACE` asks for two descriptors, so that the first
    // header and its data lie within it. `sendmsg` reads the message and what it points to, which all lives until it returns.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(DESCRIPTORS_BYTES) as _;
        libc::CMSG_DATA(header).cast::<[RawFd; 2]>().write_unaligned(numbers);
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
