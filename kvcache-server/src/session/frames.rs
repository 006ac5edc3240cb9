//! Our extension: requests are read while answers are written.

use std::pin::pin;
use std::time::{Duration, Instant};

use kvcache_wire::extension::{FrameHead, FrameHeader, FrameOp, write_frame};
use kvcache_wire::{DecodeError, Status};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame_requests::{Handled, handle};
use super::put_request::PutRequest;
use super::stock::fault_of;
use super::{End, Shared, Stopping, stopped};
use crate::incoming::Incoming;
use crate::local::Leases;
use crate::metrics::{Fault, Operation};
use crate::outgoing::Outgoing;

/// Serves frames until the connection ends.
///
/// One task does both directions, so that a small answer leaves without waking another thread. It reads ahead while
/// answers leave, up to the limits that the welcome names.
pub(super) async fn serve<R, W>(
    shared: &Shared,
    mut stopping: Stopping,
    incoming: &mut Incoming<R>,
    outgoing: &mut Outgoing<W>,
    mut leases: Option<&mut Leases>,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reading = Reading::start();
    let mut deadlines = Deadlines::new(shared);
    let mut alarm = pin!(tokio::time::sleep(FAR));
    let mut ending = None;
    loop {
        let stops = *stopping.borrow();
        if ending.is_none() && stops && reading.is_between_requests() && !incoming.is_buffered() {
            ending = Some(End::Stopped);
            close(outgoing, Status::UNAVAILABLE, "the server stops");
            deadlines.wrote(outgoing.answers(), outgoing.bytes_of_first(), false);
        }
        if let Some(end) = ending
            && outgoing.is_idle()
        {
            if let End::Fault(fault) = end {
                shared.metrics.fault(fault);
            }
            return end;
        }
        let has_room = outgoing.answers() < shared.limits.requests_in_flight_max as usize
            && outgoing.queued_bytes() < QUEUED_BYTES_MAX;
        let reads = ending.is_none() && has_room;
        // Requests that are here already are answered together, in one call of the system.
        let collects = reads && incoming.is_buffered();
        let writes = !outgoing.is_idle() && !collects;
        let mut expiry = leases.as_ref().and_then(|leases| leases.next_expiry());
        if let (Some(at), Some(leases)) = (expiry, &mut leases) {
            // Here, since the alarm below comes last: a client that never pauses would not let it ring.
            let now = Instant::now();
            if at <= now {
                shared.metrics.leases_expired.add(leases.expire(now));
                expiry = leases.next_expiry();
            }
        }
        if let Some(earliest) = deadlines.earliest().into_iter().chain(expiry).min()
            && tokio::time::Instant::from_std(earliest) < alarm.deadline()
        {
            alarm.as_mut().reset(earliest.into());
        }
        tokio::select! {
            biased;
            written = outgoing.write_some(), if writes => match written {
                Ok(()) => deadlines.wrote(outgoing.answers(), outgoing.bytes_of_first(), outgoing.is_idle()),
                Err(_) => return fault(shared, Fault::Disconnected),
            },
            read = incoming.read_into(reading.destination()), if reads => match read {
                Ok(bytes) => {
                    let was_idle = outgoing.is_idle();
                    if let Err(error) = reading.filled(shared, bytes, outgoing, leases.as_deref_mut()) {
                        log::debug!("closing a connection: {error}");
                        close(outgoing, Status::BAD_REQUEST, &error.to_string());
                        ending = Some(End::Fault(fault_of(&error)));
                    }
                    deadlines.read(&reading);
                    if was_idle && !outgoing.is_idle() {
                        deadlines.wrote(outgoing.answers(), outgoing.bytes_of_first(), false);
                    }
                }
                // The peer has closed its half; what it asked for is still answered.
                Err(_) if reading.is_between_requests() => ending = Some(End::Closed),
                Err(_) => return fault(shared, Fault::Disconnected),
            },
            () = stopped(&mut stopping), if ending.is_none() && !stops => {}
            () = alarm.as_mut() => {
                if deadlines.earliest().is_some_and(|earliest| earliest <= Instant::now()) {
                    let is_idle = reading.is_between_requests() && outgoing.is_idle();
                    return if is_idle { End::Closed } else { fault(shared, Fault::Timeout) };
                }
                alarm.as_mut().reset(tokio::time::Instant::now() + FAR);
            }
        }
    }
}

fn fault(shared: &Shared, fault: Fault) -> End {
    shared.metrics.fault(fault);
    End::Fault(fault)
}

/// The last frame of a connection.
fn close<W: AsyncWrite + Unpin>(outgoing: &mut Outgoing<W>, status: Status, reason: &str) {
    let head = FrameHead::request(FrameOp::Close, 0, 0).answer(status);
    let mut out = Vec::new();
    // A reason fits any frame.
    let _ = write_frame(&mut out, head, 0, |out| {
        out.extend_from_slice(reason.as_bytes());
        Ok(())
    });
    outgoing.push(out, Vec::new());
}

/// Values of answers that wait to leave are held in the pool: beyond so many bytes no more requests are read.
const QUEUED_BYTES_MAX: u64 = 64 << 20;
/// Longer than any deadline, and short enough to add to any time.
const FAR: Duration = Duration::from_secs(24 * 3600);
/// Bodies are received in steps that double from here on.
const BODY_STEP: usize = 64 << 10;

/// The request that is arriving.
enum Reading {
    Header { bytes: [u8; FrameHeader::BYTES], filled: usize },
    Body { header: FrameHeader, body: Vec<u8>, filled: usize, started: Instant },
    Values { request: Box<PutRequest>, payload_bytes: u64 },
}

impl Reading {
    fn start() -> Self {
        Self::Header { bytes: [0; FrameHeader::BYTES], filled: 0 }
    }

    fn is_between_requests(&self) -> bool {
        matches!(self, Self::Header { filled: 0, .. })
    }

    /// Where the next bytes go; never empty.
    fn destination(&mut self) -> &mut [u8] {
        match self {
            Self::Header { bytes, filled } => &mut bytes[*filled..],
            Self::Body { header, body, filled, .. } => {
                // Memory follows what has arrived: a length that lies costs its sender, not us.
                if *filled == body.len() {
                    body.resize((2 * *filled).max(BODY_STEP).min(header.body_bytes as usize), 0);
                }
                &mut body[*filled..]
            }
            Self::Values { request, .. } => request.destination(),
        }
    }

    /// So many bytes have arrived there: handles what is complete.
    fn filled<W: AsyncWrite + Unpin>(
        &mut self,
        shared: &Shared,
        bytes: usize,
        outgoing: &mut Outgoing<W>,
        leases: Option<&mut Leases>,
    ) -> Result<(), DecodeError> {
        match self {
            Self::Header { bytes: header, filled } => {
                *filled += bytes;
                if *filled == FrameHeader::BYTES {
                    let header = FrameHeader::decode(header)?;
                    check_limits(shared, &header)?;
                    *self = Self::Body { header, body: Vec::new(), filled: 0, started: Instant::now() };
                }
            }
            Self::Body { filled, .. } => *filled += bytes,
            Self::Values { request, .. } => request.filled(shared, bytes),
        }
        if let Self::Body { header, body, filled, started } = self
            && *filled == header.body_bytes as usize
        {
            header.verify(body)?;
            *self = match handle(shared, header, body, *started, outgoing, leases)? {
                Handled::Answered => Self::start(),
                Handled::Receiving(request) => Self::Values { request, payload_bytes: header.payload_bytes },
            };
        }
        if let Self::Values { request, .. } = self
            && request.is_complete()
        {
            shared.metrics.request(Operation::Put, request.started().elapsed());
            outgoing.push(request.answer(), Vec::new());
            *self = Self::start();
        }
        Ok(())
    }

    /// Bytes of this request that may still come, as far as it is known.
    fn expected_bytes(&self) -> u64 {
        match self {
            Self::Header { .. } => 0,
            Self::Body { header, .. } => u64::from(header.body_bytes) + header.payload_bytes,
            Self::Values { payload_bytes, .. } => *payload_bytes,
        }
    }
}

fn check_limits(shared: &Shared, header: &FrameHeader) -> Result<(), DecodeError> {
    let limits = &shared.limits;
    for (what, found, max) in [
        ("the length of a frame's body", u64::from(header.body_bytes), u64::from(limits.body_bytes_max)),
        ("the length of a frame's payload", header.payload_bytes, limits.payload_bytes_max),
    ] {
        if found > max {
            return Err(DecodeError::AboveLimit { what, found, max });
        }
    }
    Ok(())
}

/// Until when the peer has to do its part.
struct Deadlines<'s> {
    shared: &'s Shared,
    /// For the request that is arriving; between requests: for the peer's silence.
    read: Option<Instant>,
    /// How many bytes the read deadline allows for.
    allowed_bytes: Option<u64>,
    /// For the first answer that has not left.
    write: Option<Instant>,
    answers: usize,
}

impl<'s> Deadlines<'s> {
    fn new(shared: &'s Shared) -> Self {
        let read = shared.timeouts.idle.map(|idle| Instant::now() + idle);
        Self { shared, read, allowed_bytes: None, write: None, answers: 0 }
    }

    /// Something has arrived. A request gets its time once, and more when its lengths are known.
    fn read(&mut self, reading: &Reading) {
        let timeouts = &self.shared.timeouts;
        if reading.is_between_requests() {
            self.allowed_bytes = None;
            self.read = timeouts.idle.map(|idle| Instant::now() + idle);
            return;
        }
        let expected = reading.expected_bytes();
        if self.allowed_bytes.is_none_or(|allowed| expected > allowed) {
            self.allowed_bytes = Some(expected);
            self.read = Some(Instant::now() + timeouts.transfer(expected));
        }
    }

    /// Something has left, or the first answer has come. Each answer gets its time when it is the first.
    fn wrote(&mut self, answers: usize, bytes_of_first: u64, is_idle: bool) {
        if is_idle {
            self.write = None;
            if self.allowed_bytes.is_none() {
                self.read = self.shared.timeouts.idle.map(|idle| Instant::now() + idle);
            }
        } else if self.write.is_none() || answers != self.answers {
            self.write = Some(Instant::now() + self.shared.timeouts.transfer(bytes_of_first));
        }
        self.answers = answers;
    }

    fn earliest(&self) -> Option<Instant> {
        match (self.read, self.write) {
            (Some(read), Some(write)) => Some(read.min(write)),
            (read, write) => read.or(write),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::*;
    use crate::ServerConfig;
    use crate::local::Leases;
    use crate::store::{Store, StoreConfig};

    /// A peer that always has another ping, until its time is up.
    struct Pings {
        until: Instant,
        frame: Vec<u8>,
    }

    impl AsyncRead for Pings {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            if Instant::now() < self.until {
                buffer.put_slice(&self.frame);
            }
            Poll::Ready(Ok(()))
        }
    }

    /// Leases end on time whatever else the client says meanwhile.
    #[tokio::test]
    async fn a_busy_client_keeps_no_lease() {
        let config = ServerConfig { capacity_bytes: 1 << 20, ..ServerConfig::default() };
        let store = StoreConfig { capacity_bytes: 1 << 20, eviction: "lru".to_owned(), values_max: Some(64) };
        let mut shared = Shared::for_tests(&config, Store::new(&store).expect("memory"));
        shared.timeouts.lease = Duration::from_millis(10);
        let mut leases = Leases::new(crate::local::limits(&shared));
        let mut reservation = shared.store.reserve(b"k", 100).expect("room");
        reservation.bytes_mut().fill(1);
        shared.store.publish(reservation, None);
        leases.pin(vec![shared.store.get(b"k").expect("stored")], Instant::now());
        let mut frame = Vec::new();
        write_frame(&mut frame, FrameHead::request(FrameOp::Ping, 0, 1), 0, |_| Ok(())).expect("short");
        let pings = Pings { until: Instant::now() + Duration::from_millis(50), frame };
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        let (mut incoming, mut outgoing) = (Incoming::new(pings), Outgoing::new(tokio::io::sink()));
        let end = serve(&shared, stopping, &mut incoming, &mut outgoing, Some(&mut leases)).await;
        assert_eq!((end, leases.next_expiry()), (End::Closed, None));
        assert_eq!(shared.metrics.leases_expired.get(), 1);
    }
}
