//! The socket of a connection, plain or with TLS.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};

use mio::net::TcpStream;

use super::tls::TlsStream;

#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    pub(super) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.socket(),
        }
    }

    pub(super) fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read_vectored(slices),
            Self::Tls(stream) => {
                // Plain text comes out record by record: there is nothing to gain from filling several at once.
                match slices.iter_mut().find(|slice| !slice.is_empty()) {
                    Some(slice) => stream.read(slice),
                    None => Ok(0),
                }
            }
        }
    }

    pub(super) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(slices),
            Self::Tls(stream) => stream.write_vectored(slices),
        }
    }

    /// Sends what was written and is still here; only TLS keeps any.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => stream.flush_records(),
        }
    }
}
