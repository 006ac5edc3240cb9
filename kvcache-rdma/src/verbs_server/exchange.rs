//! The smallest control plane that a client over RDMA needs: exchanges, exists, deletes. For drills, and for programs
//! without another one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvcache_wire::Status;
use kvcache_wire::stock::{Caps, Header, Op, decode_keys, reply};

use super::server::VerbsServer;
use super::storage::Storage;

/// Accepts connections and answers their requests, a thread each. Dropping it closes all of them.
pub struct ExchangeListener {
    address: SocketAddr,
    streams: Arc<Mutex<Option<Vec<TcpStream>>>>,
    thread: Option<JoinHandle<()>>,
}

impl ExchangeListener {
    /// Listens on `address`; port 0 for any that is free.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn bind<S: Storage>(address: SocketAddr, server: Arc<VerbsServer<S>>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let streams = Arc::new(Mutex::new(Some(Vec::new())));
        let thread = std::thread::Builder::new().name("kvcache-rdma-accept".to_owned()).spawn({
            let streams = Arc::clone(&streams);
            move || accept(&listener, &server, &streams)
        })?;
        Ok(Self { address, streams, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ExchangeListener {
    fn drop(&mut self) {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        for stream in streams.into_iter().flatten() {
            // Already closed by the peer: as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // One more connection lets `accept` return and find that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for ExchangeListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExchangeListener {{ {} }}", self.address)
    }
}

fn accept<S: Storage>(
    listener: &TcpListener,
    server: &Arc<VerbsServer<S>>,
    streams: &Mutex<Option<Vec<TcpStream>>>,
) {
    let mut threads = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        let Ok(other) = stream.try_clone() else { continue };
        match streams.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(streams) => streams.push(other),
            None => break,
        }
        let server = Arc::clone(server);
        threads.push(std::thread::spawn(move || {
            // However it ends, the connection ends with it.
            let _ = serve(stream, &server);
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn serve<S: Storage>(mut stream: TcpStream, server: &VerbsServer<S>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?.ip();
    let mut connection = None;
    loop {
        let mut header = [0; Header::BYTES];
        stream.read_exact(&mut header)?;
        let header = Header::decode(&header).map_err(io::Error::other)?;
        if header.body_bytes > BODY_BYTES_MAX {
            return Err(io::Error::other("a body of another protocol"));
        }
        let mut body = vec![0; header.body_bytes as usize];
        stream.read_exact(&mut body)?;
        let status = |status: Status| status.0.to_le_bytes();
        match header.op {
            Op::Exchange => {}
            Op::Exists => {
                let missing = i32::from(server.storage().get(&body).is_none());
                stream.write_all(&reply(Status::OK, missing))?;
                continue;
            }
            Op::Delete => {
                match decode_keys(&body, Caps::default()) {
                    Err(_) => stream.write_all(&status(Status::BAD_REQUEST))?,
                    Ok(keys) => {
                        let deleted = keys.iter().filter(|key| server.storage().delete(key)).count();
                        stream.write_all(&reply(Status::OK, deleted as i32))?;
                    }
                }
                continue;
            }
            _ => {
                stream.write_all(&status(Status::BAD_REQUEST))?;
                continue;
            }
        }
        if connection.is_some() {
            stream.write_all(&status(Status::UNAVAILABLE))?;
            continue;
        }
        match server.connect(&body, peer) {
            Ok(connected) => {
                stream.write_all(&status(Status::OK))?;
                stream.write_all(&connected.info().encode())?;
                connection = Some(connected);
            }
            Err(_) => stream.write_all(&status(Status::UNAVAILABLE))?,
        }
    }
}

/// A delete of some ten thousand keys.
const BODY_BYTES_MAX: u32 = 1 << 20;
