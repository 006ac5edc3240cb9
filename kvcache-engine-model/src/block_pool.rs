//! The engine's own blocks, and what they remember.
//!
//! As vLLM's block pool: a block that nobody holds stays findable by its content until it is taken for something else.
//! Free blocks are taken from the front of a list. What has a content is appended when it is freed, a request's last
//! block first, so that heads outlive tails; what has none is put in front.
//!
//! One difference: where two requests have computed the same content at once, vLLM can find either block, this pool the
//! first only.

/// What a block can hold: a content of the traffic.
pub(crate) type ContentId = u32;
pub(crate) type BlockIndex = u32;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// First and last of the free ones.
    front: u32,
    back: u32,
    free_count: u32,
    /// By content, the block that holds it.
    holders: Vec<u32>,
    /// Whether freed blocks stay findable.
    remembers: bool,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    holders: u32,
    content: ContentId,
    before: u32,
    after: u32,
}

impl BlockPool {
    pub(crate) fn new(count: u32, contents: u32, remembers: bool) -> Self {
        let before = |index: u32| index.checked_sub(1).unwrap_or(NONE);
        let after = |index: u32| if index + 1 < count { index + 1 } else { NONE };
        let blocks = (0..count)
            .map(|index| Block { holders: 0, content: NONE, before: before(index), after: after(index) })
            .collect();
        let holders = vec![NONE; if remembers { contents as usize } else { 0 }];
        Self { blocks, front: 0, back: count - 1, free_count: count, holders, remembers }
    }

    /// Blocks that nobody holds, whatever they remember.
    pub(crate) fn free_count(&self) -> u32 {
        self.free_count
    }

    /// How many of the leading `contents` are remembered.
    pub(crate) fn remembered(&self, contents: &[ContentId]) -> usize {
        if !self.remembers {
            return 0;
        }
        contents.iter().take_while(|content| self.holders[**content as usize] != NONE).count()
    }

    /// How many of `contents`, all of which are remembered, nobody holds.
    pub(crate) fn unheld(&self, contents: &[ContentId]) -> u32 {
        let unheld =
            |content: &&ContentId| self.blocks[self.holders[**content as usize] as usize].holders == 0;
        contents.iter().filter(unheld).count() as u32
    }

    /// Holds the block that remembers `content`.
    pub(crate) fn hold_remembered(&mut self, content: ContentId) -> BlockIndex {
        let index = self.holders[content as usize];
        assert_ne!(index, NONE, "content {content} is remembered");
        self.hold(index);
        index
    }

    /// Holds a block once more.
    pub(crate) fn hold(&mut self, index: BlockIndex) {
        if self.blocks[index as usize].holders == 0 {
            self.unlink(index);
        }
        self.blocks[index as usize].holders += 1;
    }

    /// Takes the first free block, which forgets what it held.
    pub(crate) fn take(&mut self) -> Option<BlockIndex> {
        let index = self.front;
        if index == NONE {
            return None;
        }
        self.forget(index);
        self.hold(index);
        Some(index)
    }

    /// From now on the block can be found by its content.
    pub(crate) fn name(&mut self, index: BlockIndex, content: ContentId) {
        if self.remembers && self.holders[content as usize] == NONE {
            self.forget(index);
            self.holders[content as usize] = index;
            self.blocks[index as usize].content = content;
        }
    }

    /// Lets go of a request's blocks, given from first to last.
    pub(crate) fn release(&mut self, blocks: &[BlockIndex]) {
        let mut nameless = NONE;
        for index in blocks.iter().rev() {
            let block = &mut self.blocks[*index as usize];
            block.holders -= 1;
            if block.holders > 0 {
                continue;
            }
            if block.content == NONE {
                // Behind the nameless ones before it: all of them go to the front in their order.
                self.link_after(*index, nameless);
                nameless = *index;
            } else {
                self.link_after(*index, self.back);
            }
        }
    }

    fn forget(&mut self, index: BlockIndex) {
        let content = std::mem::replace(&mut self.blocks[index as usize].content, NONE);
        if content != NONE {
            self.holders[content as usize] = NONE;
        }
    }

    fn unlink(&mut self, index: BlockIndex) {
        let Block { before, after, .. } = self.blocks[index as usize];
        match before {
            NONE => self.front = after,
            before => self.blocks[before as usize].after = after,
        }
        match after {
            NONE => self.back = before,
            after => self.blocks[after as usize].before = before,
        }
        self.free_count -= 1;
    }

    /// Puts a block behind `before`, or in front if that is none.
    fn link_after(&mut self, index: BlockIndex, before: u32) {
        let after = match before {
            NONE => std::mem::replace(&mut self.front, index),
            before => std::mem::replace(&mut self.blocks[before as usize].after, index),
        };
        match after {
            NONE => self.back = index,
            after => self.blocks[after as usize].before = index,
        }
        (self.blocks[index as usize].before, self.blocks[index as usize].after) = (before, after);
        self.free_count += 1;
    }

    /// Verifies every invariant; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let (mut count, mut index, mut before) = (0, self.front, NONE);
        while index != NONE {
            let block = &self.blocks[index as usize];
            assert_eq!((block.holders, block.before), (0, before), "free block {index}");
            (before, index, count) = (index, block.after, count + 1);
        }
        assert_eq!((count, before), (self.free_count, self.back));
        assert_eq!(self.blocks.iter().filter(|block| block.holders == 0).count(), count as usize);
        for (index, block) in self.blocks.iter().enumerate() {
            if block.content != NONE {
                assert_eq!(self.holders[block.content as usize], index as u32);
            }
        }
        for (content, index) in self.holders.iter().enumerate() {
            assert!(*index == NONE || self.blocks[*index as usize].content == content as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(pool: &mut BlockPool, count: usize) -> Vec<BlockIndex> {
        (0..count).map(|_| pool.take().expect("a free block")).collect()
    }

    #[test]
    fn heads_outlive_tails_and_what_is_nameless_goes_first() {
        let mut pool = BlockPool::new(4, 10, true);
        let blocks = taken(&mut pool, 3);
        pool.name(blocks[0], 7);
        pool.name(blocks[1], 8);
        pool.release(&blocks);
        // Free: the nameless block 2, the unused block 3, then 8 before 7.
        assert_eq!(taken(&mut pool, 2), [2, 3]);
        assert_eq!(pool.remembered(&[7, 8, 9]), 2);
        assert_eq!(pool.take(), Some(1));
        assert_eq!((pool.remembered(&[7, 8]), pool.remembered(&[8])), (1, 0));
        assert_eq!(pool.hold_remembered(7), 0);
        assert_eq!((pool.take(), pool.free_count()), (None, 0));
        pool.check();
    }

    #[test]
    fn a_shared_block_is_free_when_the_last_holder_is_gone() {
        let mut pool = BlockPool::new(2, 1, true);
        let block = pool.take().expect("free");
        pool.name(block, 0);
        assert_eq!((pool.hold_remembered(0), pool.unheld(&[0])), (block, 0));
        pool.release(&[block]);
        assert_eq!(pool.free_count(), 1);
        pool.release(&[block]);
        assert_eq!((pool.free_count(), pool.unheld(&[0])), (2, 1));
    }

    #[test]
    fn without_a_prefix_cache_nothing_is_remembered() {
        let mut pool = BlockPool::new(2, 5, false);
        let block = pool.take().expect("free");
        pool.name(block, 3);
        pool.release(&[block]);
        assert_eq!(pool.remembered(&[3]), 0);
        pool.check();
    }

    proptest! {
        /// Against a list and a map, as simple as they can be.
        #[test]
        fn agrees_with_a_naive_pool(operations in proptest::collection::vec((0u8..4, 0u32..6, 1usize..4), 0..120)) {
            let mut pool = BlockPool::new(8, 6, true);
            let mut free: Vec<u32> = (0..8).collect();
            let mut content: [Option<u32>; 8] = [None; 8];
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (operation, which, count) in operations {
                match operation {
                    0 if free.len() >= count => {
                        let expected: Vec<u32> = free.drain(..count).collect();
                        expected.iter().for_each(|block| content[*block as usize] = None);
                        prop_assert_eq!(&taken(&mut pool, count), &expected);
                        held.push(expected);
                    }
                    1 => if let Some(block) = content.iter().position(|of| *of == Some(which)) {
                        free.retain(|of| *of != block as u32);
                        prop_assert_eq!(pool.hold_remembered(which), block as u32);
                        held.push(vec![block as u32]);
                    },
                    2 => if let Some(block) = held.last().map(|blocks| blocks[0])
                        && !content.contains(&Some(which))
                    {
                        content[block as usize] = Some(which);
                        pool.name(block, which);
                    },
                    _ => if !held.is_empty() {
                        let blocks = held.remove(which as usize % held.len());
                        pool.release(&blocks);
                        let mut front = Vec::new();
                        for block in blocks.iter().rev().filter(|block| !held.iter().flatten().any(|of| of == *block)) {
                            if content[*block as usize].is_some() { free.push(*block) } else { front.push(*block) }
                        }
                        free.splice(..0, front);
                    },
                }
                pool.check();
                prop_assert_eq!(pool.free_count() as usize, free.len());
                for which in 0..6 {
                    prop_assert_eq!(pool.remembered(&[which]), usize::from(content.contains(&Some(which))));
                }
            }
        }
    }
}
