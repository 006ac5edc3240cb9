//! Exact miss counts on a committed trace: a change of any policy's decisions shows here.
//!
//! The trace was made by [`generate`], in the manner of chat traffic: conversations that grow by a few blocks a turn
//! over one of four system prompts, mixed with long documents that are read once. If a change of the policy is meant,
//! run the test and take the new counts over, with the reason in the commit.

use kvcache_core::eviction::{Candidate, EvictionPolicy, PolicyRegistry, SlotId};
use kvcache_core::replay::{Replay, Trace};

const TRACE: &str = include_str!("data/conversations.jsonl");
const BLOCK_TOKENS: u64 = 512;

/// Missed blocks of 2,294 by capacity. Columns: slots, lru, s3fifo, s3fifo-fixed, hit-density.
const MISSES: [(u32, u64, u64, u64, u64); 5] = [
    (20, 1697, 1679, 1655, 1627),
    (50, 1335, 1341, 1393, 1325),
    (100, 1092, 1096, 1215, 1102),
    (200, 1022, 1049, 1128, 1042),
    (400, 1016, 1016, 1023, 1016),
];

#[test]
fn miss_counts_on_the_committed_trace_are_as_recorded() {
    let trace = parse(TRACE);
    let registry = PolicyRegistry::with_builtin();
    let counted = MISSES.map(|(slot_count, ..)| {
        let misses = |name| {
            let policy = registry.build(name, slot_count).expect("built in");
            let counts = Replay::new(&trace, slot_count, policy).run();
            counts.accesses - counts.hit_blocks
        };
        (slot_count, misses("lru"), misses("s3fifo"), misses("s3fifo-fixed"), misses("hit-density"))
    });
    assert_eq!(counted, MISSES);
}

#[test]
fn the_committed_trace_is_what_the_generator_makes() {
    assert!(TRACE == generate(20_231), "regenerate tests/data/conversations.jsonl");
    assert!(TRACE.len() <= 40 << 10);
}

/// A working set of half the capacity is used twice, then ten capacities of keys come by once.
#[test]
fn a_scan_leaves_the_working_set_in_place() {
    const SLOTS: u32 = 1000;
    let survivors = |name: &str| {
        let mut cache =
            Cache::new(PolicyRegistry::with_builtin().build(name, SLOTS).expect("built in"), SLOTS);
        for _ in 0..2 {
            (0..SLOTS / 2).for_each(|key| cache.access(key));
        }
        (SLOTS..11 * SLOTS).for_each(|key| cache.access(key));
        (0..SLOTS / 2).filter(|key| cache.key_of.contains(&Some(*key))).count()
    };
    assert_eq!(survivors("lru"), 0);
    assert!(survivors("default") >= 400, "{} of 500 survive", survivors("default"));
    assert_eq!(survivors("s3fifo-fixed"), 500);
}

/// Single keys without prefix order.
struct Cache {
    policy: Box<dyn EvictionPolicy>,
    key_of: Vec<Option<u32>>,
}

impl Cache {
    fn new(policy: Box<dyn EvictionPolicy>, slot_count: u32) -> Self {
        Self { policy, key_of: vec![None; slot_count as usize] }
    }

    fn access(&mut self, key: u32) {
        if let Some(slot) = self.key_of.iter().position(|held| *held == Some(key)) {
            return self.policy.touch(SlotId(slot as u32));
        }
        let free = self.key_of.iter().position(Option::is_none).map(|slot| SlotId(slot as u32));
        let slot = free.or_else(|| self.policy.evict(&mut |_| Candidate::Leaf)).expect("nothing is pinned");
        self.key_of[slot.index()] = Some(key);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mix(u64::from(key)).to_le_bytes());
        self.policy.insert(slot, kvcache_core::BlockKey(bytes));
    }
}

/// Reads exactly what [`generate`] writes.
fn parse(text: &str) -> Trace {
    let mut trace = Trace::new(BLOCK_TOKENS);
    for line in text.lines() {
        let (head, ids) = line.split_once("\"hash_ids\": [").expect("ids");
        let (_, tokens) = head.split_once("\"input_length\": ").expect("length");
        let tokens = tokens.split(',').next().expect("a number").parse().expect("a number");
        let ids: Vec<u64> =
            ids.trim_end_matches("]}").split(", ").map(|id| id.parse().expect("an id")).collect();
        trace.push(tokens, &ids);
    }
    trace
}

/// 280 requests as JSON lines.
fn generate(seed: u64) -> String {
    let mut state = seed;
    let mut below = |bound: u64| {
        state = state.wrapping_add(1);
        mix(state) % bound
    };
    let mut next_id = 8;
    let mut fresh = |count: u64| {
        next_id += count;
        next_id - count..next_id
    };
    let mut conversations: Vec<Vec<u64>> = Vec::new();
    let mut text = String::new();
    for request in 0..280_u64 {
        let ids = match below(10) {
            // A document that is read once.
            0 => fresh(10 + below(20)).collect(),
            // A new conversation over one of four system prompts of two blocks.
            1..4 => {
                let prompt = below(4) * 2;
                let conversation: Vec<u64> = (prompt..prompt + 2).chain(fresh(1 + below(4))).collect();
                conversations.push(conversation.clone());
                conversation
            }
            // The next turn of a conversation, most likely of a recent one.
            _ if !conversations.is_empty() => {
                let back = below(12).min(below(30)).min(conversations.len() as u64 - 1) as usize;
                let at = conversations.len() - 1 - back;
                conversations[at].extend(fresh(1 + below(3)));
                conversations[at].clone()
            }
            _ => fresh(3).collect(),
        };
        let input_tokens = ids.len() as u64 * BLOCK_TOKENS - below(BLOCK_TOKENS);
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        text += &format!(
            "{{\"timestamp\": {}, \"input_length\": {input_tokens}, \"output_length\": {}, \"hash_ids\": [{}]}}\n",
            request * 250,
            1 + below(600),
            ids.join(", ")
        );
    }
    text
}

/// The finaliser of SplitMix64.
fn mix(state: u64) -> u64 {
    let mut mixed = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
