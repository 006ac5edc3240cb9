//! A session against answers that a test makes up, one at a time.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use kvcache_core::BlockKey;
use kvcache_core::remote::{RemoteKey, RemoteSpace, value_checksum};
use kvcache_core::ring_client::{Item, ItemEnd, ItemResult, RequestId, RequestOp};
use kvcache_wire::Status;
use kvcache_wire::extension::{
    Batch as Keys, CommitItem, FrameHead, FrameHeader, FrameOp, LeasedRoom, LeasedRooms, LeasedValue,
    LeasedValues, Limits, Numbers, Statuses, write_frame,
};

use super::mapping::PoolMapping;
use super::session::{LocalSession, TURN_BYTES};
use super::socket::LocalSocket;
use crate::tcp::{Batch, InBuffer, Outgoing, Stream};

const POOL_BYTES: u64 = 1 << 20;
const VALUE_BYTES: usize = 64 << 10;

/// A session, and the server that the test plays.
struct Pair {
    session: LocalSession,
    stream: Stream,
    outgoing: Outgoing,
    buffer: InBuffer,
    ends: Vec<ItemEnd>,
    server: UnixStream,
    pool: File,
}

impl Pair {
    fn new() -> Self {
        // SAFETY: takes a terminated name and numbers; the descriptor is new and nobody else's.
        let pool =
            unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING)) };
        pool.set_len(POOL_BYTES).unwrap();
        // SAFETY: takes a descriptor, which the file keeps open, and numbers.
        let sealed = unsafe {
            libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&pool), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK)
        };
        assert_eq!(sealed, 0);
        let mapping = [pool.try_clone().unwrap().into(), pool.try_clone().unwrap().into()];
        let mapping = PoolMapping::new(mapping).unwrap();
        let limits = Limits {
            keys_max: 4096,
            key_bytes_max: 1024,
            value_bytes_max: POOL_BYTES,
            payload_bytes_max: POOL_BYTES,
            bytes_in_flight_max: POOL_BYTES,
            requests_in_flight_max: 32,
            body_bytes_max: 1 << 20,
        };
        let (socket, server) = LocalSocket::pair();
        server.set_nonblocking(true).unwrap();
        Self {
            session: LocalSession::new(limits, mapping),
            stream: Stream::Local(socket),
            outgoing: Outgoing::default(),
            buffer: InBuffer::default(),
            ends: Vec::new(),
            server,
            pool,
        }
    }

    fn begin(&mut self, request: u64, op: RequestOp, values: &mut [Vec<u8>]) {
        let item = |(number, value): (usize, &mut Vec<u8>)| Item {
            key: key(number),
            address: value.as_mut_ptr() as usize,
            bytes: value.len(),
        };
        let items: Vec<Item> = values.iter_mut().enumerate().map(item).collect();
        // SAFETY: the tests keep the values for as long as the session.
        let mut batch = unsafe { Batch::new(RequestId(request), op, &items) };
        self.session.begin(&mut batch, &mut self.outgoing, &mut self.ends);
        assert!(batch.items.is_empty());
    }

    fn forget(&mut self, request: u64, item: Option<u32>) {
        self.session.forget(RequestId(request), item, &mut self.outgoing);
    }

    /// The requests that were sent since the last call.
    fn requests(&mut self) -> Vec<(FrameHead, Vec<u8>)> {
        self.outgoing.write(&mut self.stream, usize::MAX).unwrap();
        let mut bytes = Vec::new();
        // Ends with an error: there is no more.
        let _ = self.server.read_to_end(&mut bytes);
        let mut rest = &bytes[..];
        let mut requests = Vec::new();
        while let Some((header, after)) = rest.split_first_chunk() {
            let header = FrameHeader::decode(header).unwrap();
            let (body, after) = after.split_at(header.body_bytes as usize);
            requests.push((header.head, body.to_vec()));
            rest = after;
        }
        requests
    }

    /// The operations of these.
    fn ops(&mut self) -> Vec<FrameOp> {
        self.requests().iter().map(|(head, _)| head.op).collect()
    }

    fn answer(&mut self, head: FrameHead, body: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = Vec::new();
        let fill = |out: &mut Vec<u8>| {
            body(out);
            Ok(())
        };
        write_frame(&mut frame, head.answer(Status::OK), 0, fill).unwrap();
        std::io::Write::write_all(&mut self.server, &frame).unwrap();
        let Self { session, stream, buffer, outgoing, ends, .. } = self;
        session.receive(stream, buffer, outgoing, usize::MAX, ends).map_err(|fault| fault.text).unwrap();
    }

    /// Takes what was written, and has no room for more; how many values.
    fn commit(&mut self) -> usize {
        let mut count = 0;
        for (head, body) in self.requests() {
            match head.op {
                FrameOp::Commit => {
                    let statuses = vec![Status::OK; Keys::<CommitItem>::decode(&body, 100).unwrap().len()];
                    count += statuses.len();
                    self.answer(head, |out| Statuses::encode(out, &statuses));
                }
                FrameOp::Reserve => {
                    let rooms = Numbers::decode(&body, 100).unwrap().iter();
                    let rooms: Vec<_> = rooms.map(|_| LeasedRoom::refused(Status::OUT_OF_MEMORY)).collect();
                    self.answer(head, |out| LeasedRooms::encode(out, &rooms));
                }
                other => panic!("{other:?}"),
            }
        }
        count
    }

    fn copy_all(&mut self) {
        while self.session.is_copying() {
            self.session.copy(&mut self.outgoing, &mut self.ends);
        }
    }

    fn results(&self) -> Vec<ItemResult> {
        self.ends.iter().map(|end| end.result).collect()
    }
}

fn key(number: usize) -> RemoteKey {
    RemoteKey { space: RemoteSpace([3; 16]), block: BlockKey([number as u8; 16]) }
}

fn values(count: u8) -> Vec<Vec<u8>> {
    (1..=count).map(|number| vec![number; VALUE_BYTES]).collect()
}

/// Room for so many values, one after the other, leased from `lease` on.
fn rooms(lease: u64, count: u64) -> Vec<LeasedRoom> {
    let room = |index| LeasedRoom {
        status: Status::OK,
        lease: lease + index,
        offset_bytes: (lease + index) * VALUE_BYTES as u64,
    };
    (0..count).map(room).collect()
}

#[test]
fn a_value_that_was_written_is_committed_although_what_is_copied_beside_it_is_forgotten() {
    let mut pair = Pair::new();
    let others = TURN_BYTES / VALUE_BYTES;
    let (mut first, mut second) = (values(1), values(others as u8 + 1));
    pair.begin(1, RequestOp::Put, &mut first);
    pair.begin(2, RequestOp::Put, &mut second[1..]);
    let asked = pair.requests();
    pair.answer(asked[0].0, |out| LeasedRooms::encode(out, &rooms(1, 1)));
    // More than a turn copies: the first is written then, and some of the others are not.
    let one = |lease| LeasedRoom { offset_bytes: 0, ..rooms(lease, 1)[0] };
    let same_place: Vec<LeasedRoom> = (2..2 + others as u64).map(one).collect();
    pair.answer(asked[1].0, |out| LeasedRooms::encode(out, &same_place));
    pair.session.copy(&mut pair.outgoing, &mut pair.ends);
    assert!(pair.session.is_copying());
    pair.forget(2, None);
    let sent = pair.requests();
    let (commit, body) = sent.iter().find(|(head, _)| head.op == FrameOp::Commit).expect("a commit");
    let items: Keys<'_, CommitItem> = Keys::decode(body, 100).unwrap();
    let checksum = value_checksum(&key(0).name(), &first[0]);
    assert_eq!(items.items().next().unwrap().0, CommitItem { lease: 1, checksum });
    let statuses = vec![Status::OK; items.len()];
    pair.answer(*commit, |out| Statuses::encode(out, &statuses));
    assert_eq!(pair.results(), [ItemResult::Done]);
}

#[test]
fn what_is_forgotten_is_given_back_and_not_asked_for_again() {
    let mut pair = Pair::new();
    let mut memory = values(3);
    pair.begin(1, RequestOp::Put, &mut memory);
    let reserve = pair.requests()[0].0;
    pair.forget(1, Some(1));
    pair.forget(1, Some(2));
    // Of what nobody waits for, one has room and the other should ask again.
    let mut answer = rooms(1, 2);
    answer.push(LeasedRoom::refused(Status::RETRY));
    pair.answer(reserve, |out| LeasedRooms::encode(out, &answer));
    let sent = pair.requests();
    assert_eq!(sent.iter().map(|(head, _)| head.op).collect::<Vec<_>>(), [FrameOp::Release]);
    assert_eq!(Numbers::decode(&sent[0].1, 10).unwrap().iter().collect::<Vec<_>>(), [2]);
    pair.copy_all();
    assert_eq!(pair.commit(), 1);
    assert_eq!((pair.ops(), pair.results()), (vec![], vec![ItemResult::Done]));
    assert_eq!((pair.session.has_room(), pair.session.load()), (true, 0));
}

#[test]
fn what_the_server_takes_later_is_asked_for_later() {
    for op in [RequestOp::Put, RequestOp::Get] {
        let mut pair = Pair::new();
        let mut memory = values(2);
        pair.begin(1, op, &mut memory);
        for lease in 1..=2 {
            let asked = pair.requests().pop().expect("a request").0;
            let count = 3 - lease as usize;
            let place = lease * VALUE_BYTES as u64;
            match op {
                RequestOp::Put => {
                    let mut answer = rooms(lease, 1);
                    answer.resize(count, LeasedRoom::refused(Status::RETRY));
                    pair.answer(asked, |out| LeasedRooms::encode(out, &answer));
                    pair.copy_all();
                    assert_eq!(pair.commit(), 1);
                }
                _ => {
                    let stored = vec![9; VALUE_BYTES];
                    pair.pool.write_all_at(&stored, place).unwrap();
                    let checksum = Some(value_checksum(&key(lease as usize - 1).name(), &stored));
                    let value_bytes = VALUE_BYTES as u64;
                    let value =
                        LeasedValue { status: Status::OK, value_bytes, checksum, offset_bytes: place };
                    let mut answer = vec![value];
                    answer.resize(count, LeasedValue { status: Status::RETRY, ..value });
                    pair.answer(asked, |out| LeasedValues::encode(out, lease, &answer));
                    pair.copy_all();
                }
            }
        }
        assert_eq!(pair.results(), [ItemResult::Done; 2]);
        assert_eq!((pair.session.owes(), pair.session.load()), (false, 0));
    }
}

#[test]
fn a_place_outside_of_the_pool_ends_the_connection() {
    for offset_bytes in [POOL_BYTES - VALUE_BYTES as u64 + 1, POOL_BYTES, u64::MAX] {
        let mut pair = Pair::new();
        let mut memory = values(1);
        pair.begin(1, RequestOp::Put, &mut memory);
        let head = pair.requests()[0].0;
        let mut frame = Vec::new();
        let room = LeasedRoom { offset_bytes, ..rooms(1, 1)[0] };
        let fill = |out: &mut Vec<u8>| {
            LeasedRooms::encode(out, &[room]);
            Ok(())
        };
        write_frame(&mut frame, head.answer(Status::OK), 0, fill).unwrap();
        std::io::Write::write_all(&mut pair.server, &frame).unwrap();
        let Pair { session, stream, buffer, outgoing, ends, .. } = &mut pair;
        let fault = session.receive(stream, buffer, outgoing, usize::MAX, ends).unwrap_err();
        assert!(fault.text.contains("outside of the server's pool"), "{}", fault.text);
        assert_eq!(ends.len(), 1);
    }
}

#[test]
fn room_for_the_next_values_comes_with_the_commit() {
    let mut pair = Pair::new();
    let mut memory = values(2);
    pair.begin(1, RequestOp::Put, &mut memory);
    let reserve = pair.requests()[0].0;
    pair.answer(reserve, |out| LeasedRooms::encode(out, &rooms(1, 2)));
    pair.copy_all();
    let sent = pair.requests();
    assert_eq!(sent.iter().map(|(head, _)| head.op).collect::<Vec<_>>(), [FrameOp::Commit, FrameOp::Reserve]);
    assert_eq!(Numbers::decode(&sent[1].1, 10).unwrap().iter().collect::<Vec<_>>(), [VALUE_BYTES as u64; 2]);
    pair.answer(sent[0].0, |out| Statuses::encode(out, &[Status::OK; 2]));
    // The server has one piece only.
    pair.answer(sent[1].0, |out| {
        LeasedRooms::encode(out, &[rooms(3, 1)[0], LeasedRoom::refused(Status::OUT_OF_MEMORY)]);
    });
    assert!(pair.session.holds_spare() && !pair.session.owes());
    // A put of one value is copied without a word, and committed; that of another length asks.
    let mut next = [vec![7; VALUE_BYTES], vec![8; 100]];
    pair.begin(2, RequestOp::Put, &mut next);
    let asked = pair.requests();
    assert_eq!(Numbers::decode(&asked[0].1, 10).unwrap().iter().collect::<Vec<_>>(), [100]);
    pair.copy_all();
    let (commit, body) = pair.requests().swap_remove(0);
    let items: Keys<'_, CommitItem> = Keys::decode(&body, 100).unwrap();
    assert_eq!(items.items().next().unwrap().0.lease, 3);
    let mut stored = vec![0; VALUE_BYTES];
    pair.pool.read_exact_at(&mut stored, 3 * VALUE_BYTES as u64).unwrap();
    assert!(stored == next[0]);
    pair.answer(commit, |out| Statuses::encode(out, &[Status::OK]));
    assert_eq!(pair.results(), [ItemResult::Done; 3]);
}

#[test]
fn room_for_nobody_is_given_back() {
    let mut pair = Pair::new();
    let mut memory = values(1);
    pair.begin(1, RequestOp::Put, &mut memory);
    let reserve = pair.requests()[0].0;
    pair.answer(reserve, |out| LeasedRooms::encode(out, &rooms(1, 1)));
    pair.copy_all();
    let sent = pair.requests();
    pair.answer(sent[1].0, |out| LeasedRooms::encode(out, &rooms(9, 1)));
    assert!(pair.session.holds_spare());
    pair.session.rest(&mut pair.outgoing);
    assert!(!pair.session.holds_spare());
    let given = pair.requests();
    assert_eq!(Numbers::decode(&given[0].1, 10).unwrap().iter().collect::<Vec<_>>(), [9]);
}
