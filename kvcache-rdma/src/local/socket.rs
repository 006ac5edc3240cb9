//! A Unix socket that descriptors come through. A leaf: the one place of the client with control messages.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

use kvcache_wire::extension::local_socket_name;
use mio::net::UnixStream;

/// A connection to a server of this host.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    stream: UnixStream,
    received: Vec<OwnedFd>,
}

impl LocalSocket {
    /// Calls the server of TCP `port`. Does not wait: it is there and has room in its line, or not.
    ///
    /// # Errors
    ///
    /// Nobody listens, too many wait already, or who listens is neither our user nor root. The token is said to nobody
    /// else: any user of the host can take the name first.
    pub(crate) fn connect(port: u16) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(local_socket_name(port))?;
        // It does not block: to stand in the line of a server that is stopped would stop this thread for as long.
        let stream = UnixStream::connect_addr(&address)?;
        let user = peer_user(&stream)?;
        // SAFETY: takes nothing and cannot fail.
        if user != 0 && user != unsafe { libc::geteuid() } {
            return Err(io::Error::other(format!("its Unix socket belongs to user {user}")));
        }
        Ok(Self { stream, received: Vec::new() })
    }

    /// A connection, and its other end.
    #[cfg(test)]
    pub(super) fn pair() -> (Self, std::os::unix::net::UnixStream) {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (Self { stream: UnixStream::from_std(near), received: Vec::new() }, far)
    }

    pub(crate) fn source(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// The descriptors that came so far, if they are two.
    pub(crate) fn take_descriptors(&mut self) -> Option<[OwnedFd; 2]> {
        std::mem::take(&mut self.received).try_into().ok()
    }

    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(slices)
    }

    /// Reads, and keeps descriptors that come along.
    pub(crate) fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut control = Control([0; CONTROL_BYTES]);
        // SAFETY: a message of zeros is one without anything.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // The layout of `IoSliceMut` is that of `iovec`.
        message.msg_iov = slices.as_mut_ptr().cast();
        message.msg_iovlen = slices.len() as _;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES as _;
        // SAFETY: the message and what it points to live until the call returns.
        let read =
            unsafe { libc::recvmsg(self.stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: `recvmsg` has filled the control buffer, which is aligned as its headers must be, and has set its length.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !header.is_null() {
            // SAFETY: the macros return headers whose whole message lies within the buffer.
            let (kind, data, bytes) = unsafe {
                let head = &*header;
                let bytes = (head.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                ((head.cmsg_level, head.cmsg_type), libc::CMSG_DATA(header), bytes)
            };
            if kind == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                for index in 0..bytes / size_of::<RawFd>() {
                    // SAFETY: the kernel wrote so many descriptors there, all new and ours.
                    let descriptor = unsafe { data.cast::<RawFd>().add(index).read_unaligned() };
                    // SAFETY: as above.
                    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
                    // More than two are none that we asked for: they are closed.
                    if self.received.len() < 2 {
                        self.received.push(descriptor);
                    }
                }
            }
            // SAFETY: as for the first.
            header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
        }
        Ok(read)
    }
}

/// Room for a control message with two descriptors, aligned as its header must be.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

// SAFETY: arithmetic on a length.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE(2 * size_of::<RawFd>() as u32) } as usize;

fn peer_user(stream: &UnixStream) -> io::Result<libc::uid_t> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut peer).cast();
    // SAFETY: `peer` is as long as `bytes` says, and both live until the call returns.
    let status = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut bytes)
    };
    if status == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// The line of a server that is stopped fills up; to stand in it would stop this side, too.
    #[test]
    fn a_server_whose_line_is_full_is_not_waited_for() {
        // Nobody else has the port, and so the name, for as long as it is bound.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = port.local_addr().unwrap().port();
        let address = SocketAddr::from_abstract_name(local_socket_name(number)).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        // SAFETY: takes a descriptor, which the listener keeps open, and a number.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let (sender, results) = mpsc::channel();
        std::thread::spawn(move || {
            let connections: Vec<_> = (0..3).map(|_| LocalSocket::connect(number)).collect();
            let _ = sender.send(connections.iter().map(Result::is_ok).collect::<Vec<bool>>());
        });
        let connected = results.recv_timeout(Duration::from_secs(10)).expect("it waits in line");
        assert_eq!(connected, [true, false, false]);
    }
}
