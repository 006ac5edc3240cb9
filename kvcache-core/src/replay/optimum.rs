//! The most that any policy could hit, if it knew the future.
//!
//! After each request the cache keeps, of what it had and what the request brought, the blocks that are used again
//! soonest (Belady, *A study of replacement algorithms for a virtual-storage computer*, IBM Systems Journal, 1966), and stores nothing
//! else. A block's prefix is used again no later than the block, so that with the deeper block leaving first among
//! equals the cache always holds whole prefixes: what counts as a hit is what Belady's rule counts, for which it is
//! the best.

use std::collections::BinaryHeap;

use super::{ReplayCounts, Trace};

impl Trace {
    /// What the best of all choices of victims would hit with `slot_count` slots: the bound that no policy passes.
    ///
    /// Blocks are stored or not as is best, and a request may evict everything. Exact where equal ids have equal
    /// prefixes. Cost: O(log n) an access of n; 20 bytes an access.
    pub fn optimum(&self, slot_count: u32) -> ReplayCounts {
        let next_uses = self.next_uses();
        let mut counts = ReplayCounts::default();
        // By block: the request that uses it next, if it is here.
        let mut here = vec![NOT_HERE; self.block_count()];
        let mut held = 0;
        // Entries that no longer say what `here` says are void.
        let mut latest_use_first = BinaryHeap::new();
        let mut access = 0;
        for (now, (request, blocks)) in (1..).zip(self.requests()) {
            let hit_blocks = blocks.iter().take_while(|block| here[**block as usize] == now).count() as u64;
            counts.count(request, blocks.len(), hit_blocks, self.block_tokens);
            for (depth, &block) in (0_u32..).zip(blocks) {
                let next = next_uses[access];
                access += 1;
                let known = &mut here[block as usize];
                if *known == next {
                    continue; // It came twice in this request.
                }
                held += u32::from(*known == NOT_HERE);
                *known = next;
                latest_use_first.push((next, depth, block));
            }
            while held > slot_count || latest_use_first.peek().is_some_and(|(next, ..)| *next == NEVER) {
                let Some((next, _, block)) = latest_use_first.pop() else { break };
                if here[block as usize] == next {
                    here[block as usize] = NOT_HERE;
                    held -= 1;
                    counts.evictions += u64::from(next != NEVER);
                }
            }
        }
        counts
    }

    /// By access: the number of the next request that uses the block, from 1.
    fn next_uses(&self) -> Vec<u32> {
        let mut next_uses = vec![NEVER; self.access_count()];
        let mut next_use = vec![NEVER; self.block_count()];
        let mut end = self.access_count();
        for (now, (_, blocks)) in self.requests().enumerate().collect::<Vec<_>>().into_iter().rev() {
            let begin = end - blocks.len();
            for (access, block) in (begin..end).zip(blocks) {
                next_uses[access] = next_use[*block as usize];
            }
            // Requests are fewer than accesses, of which 2^32 would not fit into memory.
            blocks.iter().for_each(|block| next_use[*block as usize] = now as u32 + 1);
            end = begin;
        }
        next_uses
    }
}

/// Not used again: later than everything else.
const NEVER: u32 = u32::MAX;
/// Requests are numbered from 1.
const NOT_HERE: u32 = 0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eviction::PolicyRegistry;
    use crate::replay::Replay;

    fn trace(requests: &[Vec<u64>]) -> Trace {
        let mut trace = Trace::new(16);
        requests.iter().for_each(|blocks| trace.push(16 * blocks.len() as u64, blocks));
        trace
    }

    /// Tries every set of blocks that could be kept after each request.
    fn best_of_all(requests: &[Vec<u64>], slot_count: u32, held: u32) -> u64 {
        let Some((request, later)) = requests.split_first() else { return 0 };
        let hits = request.iter().take_while(|block| held >> **block & 1 == 1).count() as u64;
        let all = request.iter().fold(held, |all, block| all | 1 << block);
        let mut kept = all;
        let mut best = 0;
        loop {
            if kept.count_ones() <= slot_count {
                best = best.max(best_of_all(later, slot_count, kept));
            }
            if kept == 0 {
                return hits + best;
            }
            kept = (kept - 1) & all;
        }
    }

    /// Prefixes of the five paths of a small tree, in any order.
    fn requests() -> impl Strategy<Value = Vec<Vec<u64>>> {
        let paths = vec![vec![0, 1, 2], vec![0, 1, 3], vec![0, 4], vec![5, 6], vec![5]];
        let request = (prop::sample::select(paths), 1..4_usize).prop_map(|(path, length)| {
            let length = length.min(path.len());
            path[..length].to_vec()
        });
        prop::collection::vec(request, 1..6)
    }

    proptest! {
        #[test]
        fn is_the_best_of_all_choices(requests in requests(), slot_count in 0..5_u32) {
            let counts = trace(&requests).optimum(slot_count);
            prop_assert_eq!(counts.hit_blocks, best_of_all(&requests, slot_count, 0));
        }

        #[test]
        fn no_policy_hits_more(requests in requests(), slot_count in 0..5_u32) {
            let trace = trace(&requests);
            let optimum = trace.optimum(slot_count).hit_blocks;
            let registry = PolicyRegistry::for_planner(false);
            for name in registry.names() {
                let policy = registry.build(name, slot_count).expect("known");
                prop_assert!(Replay::new(&trace, slot_count, policy).run().hit_blocks <= optimum, "{}", name);
            }
        }
    }

    #[test]
    fn a_block_that_comes_twice_in_a_request_is_held_once() {
        let counts = trace(&[vec![1, 2, 1, 2], vec![3], vec![1, 2]]).optimum(2);
        assert_eq!((counts.requests, counts.accesses, counts.hit_blocks), (3, 7, 2));
        assert_eq!((counts.input_tokens, counts.hit_tokens), (112, 32));
    }

    /// 1 and 2 come back sooner than 7, which is never stored.
    #[test]
    fn what_comes_back_late_is_not_stored() {
        let counts = trace(&[vec![1, 2], vec![7], vec![1, 2], vec![7]]).optimum(2);
        assert_eq!((counts.hit_blocks, counts.evictions), (2, 1));
    }
}
