//! Clients on the server's host: leases over the Unix socket, and what becomes of them.

mod peer;

use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use kvcache_server::{Server, Token};
use kvcache_wire::extension::{
    CommitItem, Features, FrameHead, FrameOp, GetItem, Hello, LeasedRoom, LeasedRooms, LeasedValue,
    LeasedValues, Numbers, Statuses, Welcome, local_socket_name, write_frame,
};
use kvcache_wire::{Status, checksum};
use peer::{ANY, Peer, content, metric, put_item, server, wait_for};

type Local = Peer<UnixStream>;

fn call(server: &Server) -> Local {
    let address = SocketAddr::from_abstract_name(local_socket_name(server.address().port())).expect("a name");
    let stream = UnixStream::connect_addr(&address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
    Peer { stream }
}

fn greet(peer: &mut Local, token: &[u8]) -> Result<Welcome, Status> {
    let hello = Hello { features: Features(u64::MAX), ..Hello::new(token) };
    peer.send(&hello.encode().expect("short"));
    let status = peer.status();
    if !status.is_ok() {
        return Err(status);
    }
    assert_eq!(u32::from_le_bytes(peer.receive()), Welcome::BYTES as u32);
    Ok(Welcome::decode(&peer.receive::<{ Welcome::BYTES }>()).expect("good"))
}

fn connect(server: &Server) -> Local {
    let mut peer = call(server);
    let welcome = greet(&mut peer, b"").expect("welcome");
    assert!(welcome.features.contain(Features::SHARED_MEMORY));
    peer
}

fn numbers(peer: &mut Local, op: FrameOp, numbers: &[u64]) {
    let mut frame = Vec::new();
    write_frame(&mut frame, FrameHead::request(op, 0, 5), 0, |out| Numbers::encode(out, numbers))
        .expect("few");
    peer.send(&frame);
}

fn lease(peer: &mut Local, items: &[(GetItem, &str)]) -> (u64, Vec<LeasedValue>) {
    peer.send_batch(FrameHead::request(FrameOp::Lease, 0, 3), "", items, &[]);
    let (header, body) = peer.frame();
    assert_eq!((header.head.op, header.head.status), (FrameOp::Lease, Status::OK));
    let leased = LeasedValues::decode(&body, items.len() as u32).expect("good");
    (leased.lease, leased.iter().collect())
}

fn reserve(peer: &mut Local, lengths: &[u64]) -> Vec<LeasedRoom> {
    numbers(peer, FrameOp::Reserve, lengths);
    let (_, body) = peer.frame();
    LeasedRooms::decode(&body, lengths.len() as u32).expect("good").iter().collect()
}

fn commit(peer: &mut Local, items: &[(CommitItem, &str)]) -> Vec<Status> {
    peer.send_batch(FrameHead::request(FrameOp::Commit, 0, 4), "", items, &[]);
    let (_, body) = peer.frame();
    Statuses::decode(&body, items.len() as u32).expect("good").iter().collect()
}

/// As a client sees and changes it.
fn pool(server: &Server) -> std::fs::File {
    server.store().pool().file().try_clone_to_owned().expect("a descriptor").into()
}

fn at(server: &Server, value: &LeasedValue) -> Vec<u8> {
    let mut bytes = vec![0; value.value_bytes as usize];
    pool(server).read_exact_at(&mut bytes, value.offset_bytes).expect("within");
    bytes
}

fn put(peer: &mut Local, server: &Server, key: &str, value: &[u8]) {
    let room = reserve(peer, &[value.len() as u64])[0];
    assert_eq!(room.status, Status::OK);
    pool(server).write_all_at(value, room.offset_bytes).expect("within");
    let item = CommitItem { lease: room.lease, checksum: checksum(value) };
    assert_eq!(commit(peer, &[(item, key)]), [Status::OK]);
}

const USED: &str = "kvcache_server_used_bytes";

#[test]
fn what_is_written_to_the_pool_is_there_for_everybody() {
    let server = server(|_| {});
    let mut local = connect(&server);
    let value = content(1, 10_000);
    put(&mut local, &server, "k", &value);
    let (mut remote, _) = Peer::with_frames(server.address());
    let got = remote.get_batch("", &[(ANY, "k")]);
    assert_eq!((&got[0].1, got[0].0.checksum), (&value, Some(checksum(&value))));
    remote.put_batch(0, "", &[(put_item(&value), "l")], &value);
    let small = GetItem { value_bytes_max: 9_999 };
    let (one, values) = lease(&mut local, &[(ANY, "l"), (ANY, "missing"), (small, "k"), (ANY, "k")]);
    let statuses: Vec<_> = values.iter().map(|value| value.status).collect();
    assert_eq!(statuses, [Status::OK, Status::NOT_FOUND, Status::TOO_LARGE, Status::OK]);
    assert!([0, 3].iter().all(|index| at(&server, &values[*index]) == value));
    numbers(&mut local, FrameOp::Release, &[one, 77]);
    // Other requests are as over TCP, values included.
    assert_eq!(local.get_batch("", &[(ANY, "k")])[0].1, value);
    assert_eq!(metric(&server, "kvcache_server_shared_written_bytes_total"), 10_000);
    assert_eq!(metric(&server, "kvcache_server_shared_read_bytes_total"), 20_000);
}

#[test]
fn a_leased_value_stays_whatever_happens_to_its_key() {
    let server = server(|config| config.capacity_bytes = 64 << 10);
    let mut local = connect(&server);
    let value = content(1, 8192);
    put(&mut local, &server, "k", &value);
    let (one, values) = lease(&mut local, &[(ANY, "k")]);
    put(&mut local, &server, "k", &content(2, 8192));
    put(&mut local, &server, "other", &content(3, 8192));
    // More than there is room for: everything that is not leased goes.
    let (mut remote, _) = Peer::with_frames(server.address());
    for key in 0..40 {
        let value = content(key, 8192);
        remote.put_batch(0, "", &[(put_item(&value), key.to_string().as_str())], &value);
    }
    assert!(server.store().delete(b"39") && !server.store().contains(b"k"));
    assert_eq!(at(&server, &values[0]), value);
    server.store().purge();
    assert_eq!((at(&server, &values[0]), metric(&server, USED)), (value, 8192));
    numbers(&mut local, FrameOp::Release, &[one]);
    wait_for(&server, USED, 0);
}

#[test]
fn leases_of_values_expire_and_those_of_room_do_not() {
    let server = server(|config| config.timeouts.lease = Duration::from_millis(30));
    let mut local = connect(&server);
    put(&mut local, &server, "k", &content(1, 8192));
    lease(&mut local, &[(ANY, "k")]);
    let room = reserve(&mut local, &[4096])[0];
    server.store().purge();
    // The client does nothing, as one that is stopped.
    wait_for(&server, "kvcache_server_leases_expired_total", 1);
    wait_for(&server, USED, 4096);
    let item = CommitItem { lease: room.lease, checksum: 1 };
    assert_eq!(commit(&mut local, &[(item, "l"), (item, "m")]), [Status::OK, Status::NOT_FOUND]);
}

#[test]
fn what_a_connection_holds_goes_with_it() {
    let server = server(|_| {});
    let mut local = connect(&server);
    put(&mut local, &server, "k", &content(1, 8192));
    lease(&mut local, &[(ANY, "k")]);
    assert!(reserve(&mut local, &[4096, 5000]).iter().all(|room| room.status.is_ok()));
    server.store().purge();
    assert_eq!(metric(&server, USED), 8192 + 4096 + 8192);
    drop(local);
    wait_for(&server, USED, 0);
    assert_eq!(server.store().reserved_bytes(), 0);
}

/// A client that is disconnected may be about to write: its room is nobody else's until it has closed the connection.
#[test]
fn room_of_a_connection_that_the_server_ends_waits_for_the_client() {
    let server = server(|_| {});
    let mut local = connect(&server);
    put(&mut local, &server, "k", &content(1, 8192));
    lease(&mut local, &[(ANY, "k")]);
    reserve(&mut local, &[4096]);
    server.store().purge();
    local.send(&[0; 64]);
    assert_eq!(local.frame().0.head.op, FrameOp::Close);
    assert!(local.is_closed());
    // Far more than the server reads of one whose end it does not wait for.
    local.send(&vec![0; 8 << 20]);
    wait_for(&server, USED, 4096);
    drop(local);
    wait_for(&server, USED, 0);
}

#[test]
fn room_is_bounded() {
    let server = server(|config| config.capacity_bytes = 8 << 20);
    let mut local = connect(&server);
    let mib = 1_u64 << 20;
    let rooms = reserve(&mut local, &[mib / 2, mib / 2, 1, 0, 9 << 20]);
    let statuses: Vec<_> = rooms.iter().map(|room| room.status).collect();
    let wanted = [Status::OK, Status::OK, Status::RETRY, Status::BAD_REQUEST, Status::TOO_LARGE];
    assert_eq!(statuses[..3], wanted[..3]);
    assert_eq!(statuses[4], wanted[4]);
    numbers(&mut local, FrameOp::Release, &[rooms[0].lease, rooms[1].lease]);
    // One value always fits, however long.
    assert_eq!(
        reserve(&mut local, &[0, 3 * mib]).iter().map(|room| room.status).collect::<Vec<_>>(),
        [Status::BAD_REQUEST, Status::OK]
    );
    // Others do not suffer from it.
    assert_eq!(reserve(&mut connect(&server), &[mib])[0].status, Status::OK);
}

/// A value of one byte takes a whole granule, and is counted so.
#[test]
fn room_for_small_values_is_bounded_as_well() {
    let server = server(|config| config.capacity_bytes = 8 << 20);
    let mut local = connect(&server);
    let rooms = reserve(&mut local, &[1; 1000]);
    let granted = rooms.iter().filter(|room| room.status.is_ok()).count();
    assert_eq!(granted, (1 << 20) / 4096, "an eighth of the pool");
    assert!(rooms[granted..].iter().all(|room| room.status == Status::RETRY));
    assert_eq!((server.store().reserved_bytes(), metric(&server, USED)), (1 << 20, 1 << 20));
}

/// Room does not expire: whatever clients do, half of the pool stays for values.
#[test]
fn all_clients_together_hold_half_of_the_pool() {
    let server = server(|config| config.capacity_bytes = 8 << 20);
    let mut clients: Vec<Local> = (0..8).map(|_| connect(&server)).collect();
    let statuses: Vec<Status> =
        clients.iter_mut().map(|client| reserve(client, &[1 << 20])[0].status).collect();
    assert_eq!(statuses[..4], [Status::OK; 4]);
    assert_eq!(statuses[4..], [Status::OUT_OF_MEMORY; 4]);
    // Who sends values, and is disconnected if that takes too long, still finds room.
    let (mut remote, _) = Peer::with_frames(server.address());
    let value = content(1, 1 << 20);
    assert_eq!(remote.put_batch(0, "", &[(put_item(&value), "k")], &value), [Status::OK]);
    drop(clients);
    wait_for(&server, USED, 1 << 20);
}

/// What a client has leased is bounded, in memory of the pool and in memory for the leases themselves.
#[test]
fn leased_values_are_bounded() {
    let server = server(|config| config.capacity_bytes = 8 << 20);
    let mut local = connect(&server);
    put(&mut local, &server, "small", b"x");
    put(&mut local, &server, "large", &content(1, 3 << 20));
    let (first, values) = lease(&mut local, &[(ANY, "large"), (ANY, "large"), (ANY, "small")]);
    let statuses: Vec<_> = values.iter().map(|value| value.status).collect();
    assert_eq!(
        statuses,
        [Status::OK, Status::RETRY, Status::RETRY],
        "one value always, more up to a quarter"
    );
    numbers(&mut local, FrameOp::Release, &[first]);
    let (_, values) = lease(&mut local, &[(ANY, "small"); 1000]);
    assert_eq!(values.iter().filter(|value| value.status.is_ok()).count(), (2 << 20) / 4096);
    // To be told to ask again is no miss.
    assert_eq!(metric(&server, "kvcache_server_misses_total"), 0);
}

#[test]
fn without_the_token_there_are_no_descriptors_and_no_leases() {
    let server = server(|config| config.token = Some(Token::new(b"0123456789abcdef")));
    let mut local = call(&server);
    assert_eq!(greet(&mut local, b"0123456789abcdeF"), Err(Status::UNAUTHORIZED));
    assert!(local.is_closed());
    let mut local = call(&server);
    let mut frame = Vec::new();
    write_frame(&mut frame, FrameHead::request(FrameOp::Reserve, 0, 5), 0, |out| Numbers::encode(out, &[1]))
        .expect("few");
    local.send(&frame);
    let mut rest = Vec::new();
    local.stream.read_to_end(&mut rest).expect("closed");
    assert_eq!(rest, b"");
    let mut local = call(&server);
    assert!(
        greet(&mut local, b"0123456789abcdef").expect("welcome").features.contain(Features::SHARED_MEMORY)
    );
}

#[test]
fn leases_are_not_for_those_who_do_not_share_memory() {
    let server = server(|_| {});
    let (mut remote, welcome) = Peer::with_frames(server.address());
    assert!(!welcome.features.contain(Features::SHARED_MEMORY));
    remote.send_batch(FrameHead::request(FrameOp::Lease, 0, 3), "", &[(ANY, "k")], &[]);
    assert_eq!(remote.frame().0.head.op, FrameOp::Close);
    assert!(remote.is_closed());
    // Over the Unix socket, but with a hello that did not ask for it.
    let mut local = call(&server);
    local.hello(b"").expect("welcome");
    local.send_batch(FrameHead::request(FrameOp::Lease, 0, 3), "", &[(ANY, "k")], &[]);
    assert_eq!(local.frame().0.head.op, FrameOp::Close);
}

#[test]
fn without_shared_memory_nobody_listens() {
    let server = server(|config| config.shared_memory = false);
    let address = SocketAddr::from_abstract_name(local_socket_name(server.address().port())).expect("a name");
    assert!(UnixStream::connect_addr(&address).is_err());
}

#[test]
fn stopping_does_not_wait_for_room() {
    let server = server(|_| {});
    let mut local = connect(&server);
    reserve(&mut local, &[4096]);
    server.stop();
    assert_eq!(local.frame().0.head.op, FrameOp::Close);
    assert!(local.is_closed());
}
