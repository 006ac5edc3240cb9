//! The socket of a connection: TCP, with or without TLS, or a Unix socket to a server of this host.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};

use mio::event::Source;
use mio::net::TcpStream;

use super::tls::TlsStream;
use crate::local::LocalSocket;

#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
    Local(LocalSocket),
}

impl Stream {
    /// The socket of a connection over TCP.
    pub(crate) fn tcp(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(stream) => Some(stream.socket()),
            Self::Local(_) => None,
        }
    }

    /// What says when it is ready.
    pub(crate) fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.socket(),
            Self::Local(socket) => socket.source(),
        }
    }

    pub(crate) fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read_vectored(slices),
            Self::Local(socket) => socket.read_vectored(slices),
            Self::Tls(stream) => {
                // Plain text comes out record by record: there is nothing to gain from filling several at once.
                match slices.iter_mut().find(|slice| !slice.is_empty()) {
                    Some(slice) => stream.read(slice),
                    None => Ok(0),
                }
            }
        }
    }

    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(slices),
            Self::Local(socket) => socket.write_vectored(slices),
            Self::Tls(stream) => stream.write_vectored(slices),
        }
    }

    /// Sends what was written and is still here; only TLS keeps any.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) | Self::Local(_) => Ok(()),
            Self::Tls(stream) => stream.flush_records(),
        }
    }
}
