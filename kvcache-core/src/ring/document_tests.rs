//! The bytes of documents, and what is read from them.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::*;

/// One server, one that is remembered, and the version: `docs/format.md` has the same bytes.
const GOLDEN: &str = include_str!("golden_ring.json");

fn servers(list: &[(&str, &str)]) -> BTreeMap<String, ServerAddress> {
    list.iter().map(|(name, address)| ((*name).to_owned(), address.parse().expect("an address"))).collect()
}

#[test]
fn the_bytes_of_a_document_are_golden() {
    let more = BTreeMap::from([("away_since_ms".to_owned(), json!({"kv-0": 1_795_325_087_000_u64}))]);
    let one = RingDocument::of(&servers(&[("kv-0", "10.0.0.7:12345")]), 7, more).expect("a ring");
    assert_eq!(one.to_json(), GOLDEN.trim_end());
    assert_eq!(RingDocument::from_json(GOLDEN.as_bytes()).expect("a document"), one);
}

/// What AIBrix does not say at all: that there is nobody.
#[test]
fn a_ring_of_nobody_is_written_out() {
    let nobody = RingDocument::of(&BTreeMap::new(), 9, BTreeMap::new()).expect("a ring");
    assert_eq!(nobody.to_json(), r#"{"nodes":[],"version":9}"#);
    assert_eq!(RingDocument::from_json(nobody.to_json().as_bytes()).expect("a document"), nobody);
}

/// `docs/format.md` has both numbers, and a Python test makes the bytes from nothing but that text.
#[test]
fn the_bytes_of_a_ring_of_three_are_golden() {
    let three = servers(&[("c:12345", "c:12345"), ("b:12345", "b:12345"), ("a:12345", "a:12345")]);
    let text = RingDocument::of(&three, 3, BTreeMap::new()).expect("a ring").to_json();
    assert_eq!((text.len(), xxh3_64(text.as_bytes())), (69629, 10342660719576553199));
}

#[test]
fn addresses_are_written_without_brackets() {
    let six = RingDocument::of(&servers(&[("kv-0", "[fd00::7]:12345")]), 1, BTreeMap::new()).expect("a ring");
    assert!(six.to_json().starts_with(r#"{"nodes":[{"name":"kv-0","addr":"fd00::7","port":12345,"#));
    assert_eq!(RingDocument::from_json(six.to_json().as_bytes()).expect("a document"), six);
}

#[test]
fn the_short_form_names_members_or_not() {
    let text = br#"{"members": ["10.0.0.8:1", {"name": "kv-1", "address": "[::1]:2"}, {"address": "h:3"}], "version": 3}"#;
    let document = RingDocument::from_json(text).expect("a document");
    let names: Vec<String> =
        document.nodes.iter().map(|node| format!("{}={}", node.name, node.address)).collect();
    assert_eq!(names, ["10.0.0.8:1=10.0.0.8:1", "kv-1=[::1]:2", "h:3=h:3"]);
    assert_eq!(document.version, Some(3));
    assert!(document.nodes.iter().all(|node| node.slots.is_none()));
    // What has no ranges is written without them.
    let short =
        RingDocument { nodes: document.nodes[2..].to_vec(), version: None, ..RingDocument::default() };
    assert_eq!(short.to_json(), r#"{"nodes":[{"name":"h:3","addr":"h","port":3}]}"#);
}

#[test]
fn what_is_wrong_with_a_text_is_said() {
    let error = |text: &str| RingDocument::from_json(text.as_bytes()).unwrap_err().to_string();
    let remedy = r#"; write {"members": ["10.0.0.7:12345"]}"#;
    assert_eq!(
        error("{\"members\": [\"a"),
        format!("not a list of members: EOF while parsing a string at line 1 column 15{remedy}")
    );
    assert_eq!(
        error(""),
        format!("not a list of members: EOF while parsing a value at line 1 column 0{remedy}")
    );
    assert_eq!(error("{}"), format!("the JSON object has neither \"members\" nor \"nodes\"{remedy}"));
    assert_eq!(
        error(r#"{"members":[],"nodes":[]}"#),
        "the JSON object has both \"members\" and \"nodes\": keep one of them"
    );
    let number = error(r#"{"members":[17]}"#);
    assert!(number.contains("a member is \"host:port\" or"), "{number}");
    assert!(error(r#"{"nodes":[{"addr":"h","port":70000}]}"#).contains("expected u16"));
    assert!(error(r#"{"nodes":[],"version":-1}"#).contains("expected u64"));
    assert_eq!(
        error(r#"{"members":["a:1","b"]}"#),
        "member 2: \"b\" is not a server's address: the port is missing; write host:port, as in 10.0.0.7:12345"
    );
    assert!(error(r#"{"nodes":[{"addr":"","port":1}]}"#).starts_with("member 1: "));
    let long = vec![b' '; RingDocument::TEXT_BYTES_MAX + 1];
    assert_eq!(
        RingDocument::from_json(&long).unwrap_err().to_string(),
        "4194305 bytes are too long for a list of members, at most 4194304 are read"
    );
}

#[test]
fn a_ring_of_too_many_is_refused_and_the_largest_fits_a_config_map() {
    let named = |count: usize| -> BTreeMap<String, ServerAddress> {
        let server = |n: usize| {
            (format!("a-long-name-of-a-cache-{n}"), format!("10.100.{}.{}:12345", n / 256, n % 256))
        };
        let server = |n| {
            let (name, address) = server(n);
            (name, address.parse().expect("an address"))
        };
        (0..count).map(server).collect()
    };
    let refused = RingDocument::of(&named(4097), 1, BTreeMap::new());
    assert_eq!(refused.unwrap_err(), MemberListError::TooMany { count: 4097 });
    let largest = RingDocument::of(&named(4096), 1, BTreeMap::new()).expect("a ring").to_json();
    // Kubernetes takes 1 MiB of data in a ConfigMap.
    assert!(largest.len() < 1 << 20, "{}", largest.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// AIBrix's worst defect: a member with both the first and the last slot had a range that wraps, and readers lost
    /// all of its slots. Whoever the members are, the ranges here are in order, apart, and together all slots.
    #[test]
    fn every_slot_is_in_exactly_one_range(names in prop::collection::btree_set("[a-z0-9.-]{1,12}", 0..80), version in any::<u64>()) {
        let servers: BTreeMap<String, ServerAddress> = names.iter().enumerate()
            .map(|(n, name)| (name.clone(), format!("10.0.0.{n}:1").parse().expect("an address"))).collect();
        let document = RingDocument::of(&servers, version, BTreeMap::new()).expect("a ring");
        prop_assert!(document.nodes.iter().map(|node| &node.name).eq(&names));
        let mut seen = [false; RING_SLOTS];
        for node in &document.nodes {
            for range in node.slots.as_ref().expect("written with ranges") {
                prop_assert!(range.start <= range.end);
                for slot in &mut seen[range.start as usize..=range.end as usize] {
                    prop_assert!(!std::mem::replace(slot, true));
                }
            }
        }
        prop_assert_eq!(seen, [!names.is_empty(); RING_SLOTS]);
        // A reader that follows the ranges has the table of one that works it out.
        if !names.is_empty() {
            let read = RingDocument::from_json(document.to_json().as_bytes()).expect("a document");
            prop_assert_eq!(&read, &document);
            let ranges: Vec<_> = read.nodes.into_iter().map(|node| (node.name, node.slots.unwrap_or_default())).collect();
            let (table, faults) = SlotTable::from_ranges(&ranges).expect("a table");
            prop_assert_eq!(faults, RangeFaults::default());
            prop_assert_eq!(table, SlotTable::new(&names.iter().collect::<Vec<_>>()).expect("a table"));
        }
    }
}
