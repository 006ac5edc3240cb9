//! What the fuzz targets in `fuzz/` run of this module, and a short seeded run of the same in the ordinary tests.
//!
//! Each function gives bytes to a decoder, which must not panic, and checks what it accepts. Each tells whether it did.

use kvcache_core::ring::RING_SLOTS;
use kvcache_wire::RedisReply;

use super::{MemberList, MemberSnapshot, MembersFrom, PlacementSource, RemoteUrl};

/// [`MemberList::from_json`], and the tables of what it accepts.
pub fn members_json(bytes: &[u8]) -> bool {
    let Ok(list) = MemberList::from_json(bytes) else { return false };
    for placement in [PlacementSource::Computed, PlacementSource::Published] {
        let snapshot = MemberSnapshot::new(1, list.clone(), placement).expect("a list makes a ring");
        let slots = snapshot.table().map(|table| table.loads().iter().sum::<u32>() as usize);
        assert_eq!(slots, (!list.is_empty()).then_some(RING_SLOTS));
    }
    true
}

/// Parsing a [`RemoteUrl`].
pub fn remote_url(bytes: &[u8]) -> bool {
    let Ok(Ok(url)) = std::str::from_utf8(bytes).map(str::parse::<RemoteUrl>) else { return false };
    let shown = url.to_string();
    if let MembersFrom::Url(_) = url.members {
        let again = RemoteUrl { placement: PlacementSource::Computed, ..url };
        assert_eq!(shown.parse(), Ok(again));
    }
    true
}

/// A reply of Redis.
pub fn redis_reply(bytes: &[u8]) -> bool {
    let Ok(Some((reply, length))) = RedisReply::read(bytes, BULK_BYTES_MAX) else { return false };
    assert!(length <= bytes.len());
    if let RedisReply::Bulk(Some(string)) = &reply {
        assert!(string.len() <= BULK_BYTES_MAX.min(bytes.len()));
    }
    true
}

const BULK_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64_with_seed;

    use super::*;

    type Entry = (fn(&[u8]) -> bool, &'static [&'static str]);

    const GOOD: [Entry; 3] = [
        (
            members_json,
            &[
                r#"{"members":["10.0.0.7:12345",{"name":"kv-1","address":"[fd00::8]:12345"}],"version":3}"#,
                r#"{"nodes":[{"name":"kv-0","addr":"10.0.0.7","port":12345,"slots":[{"start":4000,"end":99}]},{"addr":"b","port":1}]}"#,
                r#"{"nodes":null}"#,
            ],
        ),
        (
            remote_url,
            &[
                "infinistore+rdma://10.0.0.7:12345,[fd00::8]:12345?placement=published",
                "redis://user:pa%2Fss@host:6379/3/kvcache_nodes?transport=tls",
                "file:///etc/kv%20cache/members.json",
            ],
        ),
        (
            redis_reply,
            &[
                "$11\r\nhello world\r\n",
                "-ERR no\r\n",
                ":-12\r\n",
                "+OK\r\n",
                "$-1\r\n",
                "*2\r\n+OK\r\n:1\r\n",
            ],
        ),
    ];

    /// Good inputs, each cut and damaged in a thousand ways that come back with their number.
    #[test]
    fn damaged_inputs_are_read_or_refused() {
        for (entry, inputs) in GOOD {
            for input in inputs {
                assert!(entry(input.as_bytes()), "{input}");
                for seed in 0..1000u64 {
                    let mut bytes = input.as_bytes().to_vec();
                    for edit in 0..1 + seed % 4 {
                        damage(&mut bytes, xxh3_64_with_seed(&edit.to_le_bytes(), seed));
                    }
                    entry(&bytes);
                }
            }
        }
    }

    /// Overwrites, removes or repeats a few bytes.
    fn damage(bytes: &mut Vec<u8>, random: u64) {
        let at = (random >> 8) as usize % (bytes.len() + 1);
        let end = (at + 1 + (random >> 40) as usize % 8).min(bytes.len());
        match random % 4 {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end.max(at))),
            2 => bytes.extend_from_within(at..end.max(at)),
            _ => bytes[at..end.max(at)].iter_mut().for_each(|byte| *byte ^= (random >> 48) as u8),
        }
    }
}
