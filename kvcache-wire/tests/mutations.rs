//! A short seeded run of what the fuzz targets do: good inputs of every decoder, damaged in every way that matters.

use kvcache_wire::extension::{
    Batch, CommitItem, ExistsReply, FrameHead, FrameOp, GetItem, GetOutcome, GetReplies, Hello, LeasedRoom,
    LeasedRooms, LeasedValue, LeasedValues, Named, Numbers, PutItem, Statuses, encode_stats, write_frame,
};
use kvcache_wire::fuzz_entry::ENTRIES;
use kvcache_wire::stock::{
    ConnectionInfo, GetReply, Header, Op, PayloadOp, RemoteMetaRequest, RemoteOp, TcpPayloadRequest,
    encode_keys,
};
use kvcache_wire::{Status, extension};

/// The generator of Steele, Lea and Flood (OOPSLA 2014), so that a failure comes back with its seed.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn good_inputs() -> Vec<Vec<u8>> {
    let keys = ["key-001", "key-002", "zz", ""];
    let suffixes: [&[u8]; 3] = [b"1", b"", b"key-00000000000003"];
    let mut bodies = vec![
        Header { op: Op::Payload, body_bytes: 44 }.encode().to_vec(),
        encode_keys(&keys).expect("small"),
        TcpPayloadRequest { key: b"tcpkey", op: PayloadOp::Put { value_bytes: 1000 } }
            .encode()
            .expect("small"),
        TcpPayloadRequest { key: b"tcpkey", op: PayloadOp::Get }.encode().expect("small"),
        RemoteMetaRequest::encode(RemoteOp::Store, &keys, &[1, 2, 3, 4], 65536, 7).expect("small"),
        ConnectionInfo { queue_pair: 17, packet_sequence: 0, gid: [3; 16], lid: 0, mtu_code: 3 }
            .encode()
            .to_vec(),
        GetReply::Value { bytes: 1000 }.encode()[4..].to_vec(),
        Hello::new(b"secret").encode().expect("short")[Header::BYTES..].to_vec(),
    ];
    let limits = extension::Limits {
        keys_max: 4096,
        key_bytes_max: 1024,
        value_bytes_max: 1 << 30,
        payload_bytes_max: 1 << 28,
        bytes_in_flight_max: 1 << 29,
        requests_in_flight_max: 64,
        body_bytes_max: 4 << 20,
    };
    let welcome = extension::Welcome { version: 1, features: extension::Features(1), server_id: 5, limits };
    bodies.push(welcome.encode().split_off(8));
    let mut body = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        bodies.push(out);
    };
    body(&|out| Batch::encode(out, b"pre", suffixes.iter().map(|suffix| (Named, *suffix))).expect("small"));
    body(&|out| {
        let item = GetItem { value_bytes_max: 4096 };
        Batch::encode(out, b"pre", suffixes.iter().map(|suffix| (item, *suffix))).expect("small");
    });
    body(&|out| {
        let item = PutItem { value_bytes: 4096, checksum: Some(3) };
        Batch::encode(out, b"pre", suffixes.iter().map(|suffix| (item, *suffix))).expect("small");
    });
    // The entry function takes what was asked for from the first byte: 5 keys, all of them or the leading ones.
    body(&|out| {
        out.push(5 << 1);
        ExistsReply::encode_bits(out, [true, false, true, true, false].into_iter());
    });
    body(&|out| {
        out.push(5 << 1 | 1);
        ExistsReply::encode_leading(out, 2);
    });
    body(&|out| {
        out.extend([2, 9]);
        let there = GetOutcome { status: Status::OK, value_bytes: 9, checksum: Some(1) };
        GetReplies::encode(out, &[there, GetOutcome::without_value(Status::NOT_FOUND)]);
    });
    body(&|out| {
        out.push(2);
        Statuses::encode(out, &[Status::OK, Status::OUT_OF_MEMORY]);
    });
    body(&|out| {
        let item = CommitItem { lease: 4, checksum: 3 };
        Batch::encode(out, b"pre", suffixes.iter().map(|suffix| (item, *suffix))).expect("small");
    });
    body(&|out| {
        out.push(2);
        let there = LeasedValue { status: Status::OK, value_bytes: 9, checksum: Some(1), offset_bytes: 4096 };
        LeasedValues::encode(out, 3, &[there, LeasedValue::without_value(Status::NOT_FOUND)]);
    });
    body(&|out| {
        out.push(2);
        let there = LeasedRoom { status: Status::OK, lease: 9, offset_bytes: 4096 };
        LeasedRooms::encode(out, &[there, LeasedRoom::refused(Status::OUT_OF_MEMORY)]);
    });
    body(&|out| Numbers::encode(out, &[1, 2, 1 << 40]).expect("few"));
    body(&|out| encode_stats(out, &[("values", 3), ("hits_total", 1 << 40)]).expect("short"));
    body(&|out| {
        let head = FrameHead::request(FrameOp::Get, 0, 77);
        write_frame(out, head, 4096, |out| {
            Batch::encode(out, b"pre", suffixes.iter().map(|suffix| (Named, *suffix)))
        })
        .expect("small");
    });
    bodies
}

fn damage(random: &mut SplitMix, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    const EDGES: [u8; 6] = [0, 1, 4, 0x7f, 0x80, 0xff];
    for _ in 0..=random.below(3) {
        let at = random.below(input.len());
        match random.below(6) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = EDGES[random.below(EDGES.len())],
            2 => input.truncate(at),
            3 => input.insert(at, EDGES[random.below(EDGES.len())]),
            4 if input.len() >= 4 => {
                let word = [0, 1, 0x7fff_ffff, u32::MAX, input.len() as u32][random.below(5)];
                let at = random.below(input.len() - 3);
                input[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            _ => {
                let other = &others[random.below(others.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
    }
}

#[test]
fn decoders_survive_damaged_inputs() {
    let good = good_inputs();
    let mut random = SplitMix(20_250_401);
    let mut accepted = [[0_u32; 2]; ENTRIES.len()];
    for round in 0..ROUNDS {
        // The first rounds are undamaged: every input goes through every decoder, its own one included.
        let is_damaged = round >= good.len();
        let mut input = good[if is_damaged { random.below(good.len()) } else { round }].clone();
        if is_damaged {
            damage(&mut random, &mut input, &good);
        }
        for ((name, entry), accepted) in ENTRIES.iter().zip(&mut accepted) {
            match std::panic::catch_unwind(|| entry(&input)) {
                Ok(is_accepted) => accepted[usize::from(is_damaged)] += u32::from(is_accepted),
                Err(_) => panic!("round {round}: {name} panics on {}", input.escape_ascii()),
            }
        }
    }
    // A run that every decoder refuses at the first byte would show nothing.
    for ((name, _), [undamaged, damaged]) in ENTRIES.iter().zip(accepted) {
        assert!(undamaged > 0, "{name} accepts no good input");
        let all_refused = *name == "frame";
        assert!(damaged > 0 || all_refused, "{name} accepts nothing that is damaged");
    }
}

const ROUNDS: usize = 100_000;
