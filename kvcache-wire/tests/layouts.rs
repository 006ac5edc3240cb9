//! Tables of another writer, the `flatbuffers` crate, in other layouts than ours, and our tables under its verifier.

use flatbuffers::{
    FlatBufferBuilder, ForwardsUOffset, TableFinishedWIPOffset, Vector, Verifier, VerifierOptions,
};
use kvcache_wire::stock::{
    Caps, PayloadOp, RemoteMetaRequest, RemoteOp, TcpPayloadRequest, decode_keys, encode_keys,
};
use proptest::prelude::*;

/// Field `n` of a table has the vtable offset `4 + 2 n`.
const FIELDS: [u16; 5] = [4, 6, 8, 10, 12];

fn texts(keys: &[Vec<u8>]) -> Vec<String> {
    keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
}

/// Writes the fields in the order given by `order`, with defaults spelled out, some strings shared.
fn remote_meta(keys: &[String], addresses: &[u64], order: &[usize], share: bool, defaults: bool) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    builder.force_defaults(defaults);
    let keys: Vec<_> = keys
        .iter()
        .map(|key| if share { builder.create_shared_string(key) } else { builder.create_string(key) })
        .collect();
    let keys = builder.create_vector(&keys);
    let addresses = builder.create_vector(addresses);
    let start = builder.start_table();
    for field in order {
        match field {
            0 => builder.push_slot_always(FIELDS[0], keys),
            1 => builder.push_slot::<i32>(FIELDS[1], 65536, 0),
            2 => builder.push_slot::<u32>(FIELDS[2], 0, 0),
            3 => builder.push_slot_always(FIELDS[3], addresses),
            _ => builder.push_slot::<i8>(FIELDS[4], b'A' as i8, 0),
        }
    }
    let table: flatbuffers::WIPOffset<TableFinishedWIPOffset> = builder.end_table(start);
    builder.finish(table, None);
    builder.finished_data().to_vec()
}

struct AnyTable;

impl flatbuffers::Verifiable for AnyTable {
    fn run_verifier(verifier: &mut Verifier, at: usize) -> Result<(), flatbuffers::InvalidFlatbuffer> {
        verifier
            .visit_table(at)?
            .visit_field::<ForwardsUOffset<Vector<ForwardsUOffset<&str>>>>("keys", FIELDS[0], true)?
            .visit_field::<i32>("block_size", FIELDS[1], false)?
            .visit_field::<u32>("rkey", FIELDS[2], false)?
            .visit_field::<ForwardsUOffset<Vector<u64>>>("remote_addrs", FIELDS[3], false)?
            .visit_field::<i8>("op", FIELDS[4], false)?
            .finish();
        Ok(())
    }
}

fn their_verifier_accepts(table: &[u8]) -> bool {
    let options = VerifierOptions { max_tables: 10, ..VerifierOptions::default() };
    let mut verifier = Verifier::new(&options, table);
    <ForwardsUOffset<AnyTable> as flatbuffers::Verifiable>::run_verifier(&mut verifier, 0).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn other_layouts_are_read(
        keys in prop::collection::vec("[a-c]{0,9}", 0..9),
        order in Just([0_usize, 1, 2, 3, 4].to_vec()).prop_shuffle(),
        share: bool,
        defaults: bool,
    ) {
        let addresses: Vec<u64> = (0..keys.len() as u64).map(|index| index << 33 | 5).collect();
        let table = remote_meta(&keys, &addresses, &order, share, defaults);
        let request = RemoteMetaRequest::decode(&table, Caps::default()).expect("a conforming writer");
        prop_assert!(request.keys.iter().eq(keys.iter().map(String::as_bytes)));
        prop_assert!(request.addresses.iter().eq(addresses.iter().copied()));
        prop_assert_eq!((request.op, request.block_bytes, request.remote_key), (RemoteOp::Load, 65536, 0));
    }

    #[test]
    fn what_we_write_passes_their_verifier(
        keys in prop::collection::vec(prop::collection::vec(b' '..b'~', 0..20), 0..20),
        block_bytes in 0..=i32::MAX as u32,
        remote_key: u32,
    ) {
        let keys = texts(&keys);
        let addresses: Vec<u64> = (0..keys.len() as u64).collect();
        let table =
            RemoteMetaRequest::encode(RemoteOp::Store, &keys, &addresses, block_bytes, remote_key).expect("small");
        prop_assert!(their_verifier_accepts(&table));
        let request = RemoteMetaRequest::decode(&table, Caps::default()).expect("ours");
        prop_assert!(request.keys.iter().eq(keys.iter().map(String::as_bytes)));
        prop_assert_eq!((request.block_bytes, request.remote_key), (block_bytes, remote_key));

        let table = encode_keys(&keys).expect("small");
        prop_assert!(their_verifier_accepts(&table));
        prop_assert!(decode_keys(&table, Caps::default()).expect("ours").iter().eq(keys.iter().map(String::as_bytes)));
    }

    #[test]
    fn payload_requests_come_back(key in prop::collection::vec(any::<u8>(), 0..40), value_bytes in 0..=i32::MAX as u32) {
        for op in [PayloadOp::Get, PayloadOp::Put { value_bytes }] {
            let request = TcpPayloadRequest { key: &key, op };
            let table = request.encode().expect("small");
            prop_assert_eq!(TcpPayloadRequest::decode(&table, Caps::default()), Ok(request));
        }
    }

    /// What we accept of damaged tables, the other library's verifier accepts as well: ours is never the laxer one.
    /// (Keys need not be UTF-8 for us, so the damage keeps to the seven-bit half.)
    #[test]
    fn damaged_tables_are_judged_as_strictly(
        keys in prop::collection::vec("[a-c]{0,9}", 0..5),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..128), 1..4),
        cut in any::<prop::sample::Index>(),
        cuts: bool,
    ) {
        let addresses: Vec<u64> = (0..keys.len() as u64).collect();
        let mut table = remote_meta(&keys, &addresses, &[0, 1, 2, 3, 4], false, true);
        for (place, value) in damage {
            let place = place.index(table.len());
            table[place] = value;
        }
        if cuts {
            table.truncate(cut.index(table.len()));
        }
        // The C++ library does not align a vector of nothing, which this verifier minds.
        if RemoteMetaRequest::decode(&table, Caps::default()).is_ok_and(|request| !request.addresses.is_empty()) {
            prop_assert!(their_verifier_accepts(&table), "{:?}", table);
        }
    }
}
