//! Questions about presence that wait for servers.

use std::collections::HashMap;

use crate::remote::PresenceAnswer;

/// A question that has not been answered.
#[derive(Debug)]
struct Question {
    id: u64,
    spaces: usize,
    /// Whether some holder has it, for each block and in it for each space.
    seen: Vec<bool>,
    /// Names asked for and not answered.
    waiting: usize,
}

/// All of them, by a number of ours: users may choose theirs twice.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: HashMap<u64, Question>,
    next: u64,
    pub(super) answers: Vec<PresenceAnswer>,
}

impl Questions {
    /// A question about `blocks`, each in `spaces`, that expects as many answers as [`expect`](Self::expect) adds.
    pub(super) fn begin(&mut self, id: u64, blocks: usize, spaces: usize) -> u64 {
        self.next += 1;
        let seen = vec![false; blocks * spaces];
        self.open.insert(self.next, Question { id, spaces, seen, waiting: 0 });
        self.next
    }

    pub(super) fn expect(&mut self, question: u64) {
        if let Some(question) = self.open.get_mut(&question) {
            question.waiting += 1;
        }
    }

    /// One name was answered for, or will not be.
    pub(super) fn answer(&mut self, question: u64, position: u32, present: bool) {
        let Some(open) = self.open.get_mut(&question) else { return };
        open.seen[position as usize] |= present;
        open.waiting -= 1;
        self.end_if_complete(question);
    }

    /// Answers the question if nothing is left to wait for.
    pub(super) fn end_if_complete(&mut self, question: u64) {
        if self.open.get(&question).is_none_or(|open| open.waiting > 0) {
            return;
        }
        if let Some(Question { id, spaces, seen, .. }) = self.open.remove(&question) {
            // Without a space there is no shard to be present; `chunks` of zero would panic.
            let present = seen.chunks(spaces.max(1)).map(|shards| shards.iter().all(|seen| *seen)).collect();
            self.answers.push(PresenceAnswer { question: id, present });
        }
    }

    /// Answers all of them with what is known.
    pub(super) fn end_all(&mut self) {
        let mut open: Vec<u64> = self.open.keys().copied().collect();
        open.sort_unstable();
        for question in open {
            if let Some(open) = self.open.get_mut(&question) {
                open.waiting = 0;
            }
            self.end_if_complete(question);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
