//! Questions about presence, one at a time: each is answered once, in time, and says nothing of what never was.

use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::Presence;
use kvcache_rdma::ring::RingPresence;

use crate::values::Values;

/// Keys of a question. Half of them name values that nobody puts.
const KEYS: u64 = 32;

pub(crate) struct Questions {
    presence: RingPresence,
    values: Values,
    patience: Duration,
    slack: Duration,
    since: Option<Instant>,
    pub(crate) asked: u64,
    pub(crate) answered: u64,
    pub(crate) present: u64,
    /// Of what cannot be present.
    pub(crate) wrong: u64,
    pub(crate) unknown_answers: u64,
    pub(crate) late: u64,
    pub(crate) slowest: Duration,
}

impl Questions {
    pub(crate) fn new(
        mut presence: RingPresence,
        values: Values,
        patience: Duration,
        slack: Duration,
    ) -> Self {
        presence.set_spaces(&[values.space()]);
        Self {
            presence,
            values,
            patience,
            slack,
            since: None,
            asked: 0,
            answered: 0,
            present: 0,
            wrong: 0,
            unknown_answers: 0,
            late: 0,
            slowest: Duration::ZERO,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.since.is_some()
    }

    /// Time since the open one was asked.
    pub(crate) fn oldest(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Takes answers in, and asks anew if there is no question open and `may_ask`.
    pub(crate) fn turn(&mut self, may_ask: bool) {
        let mut answers = Vec::new();
        self.presence.poll(&mut answers);
        for answer in answers {
            let Some(since) = self.since.take().filter(|_| answer.question == self.asked) else {
                self.unknown_answers += 1;
                continue;
            };
            let took = since.elapsed();
            self.slowest = self.slowest.max(took);
            self.late += u64::from(took > self.patience + self.slack);
            self.answered += 1;
            for (index, present) in answer.present.iter().enumerate() {
                let never_was = index as u64 >= KEYS / 2;
                self.present += u64::from(*present);
                self.wrong += u64::from(*present && never_was);
            }
            self.wrong += u64::from(answer.present.len() as u64 != KEYS);
        }
        if may_ask && self.since.is_none() {
            self.asked += 1;
            let first = self.asked * KEYS;
            let keys: Vec<BlockKey> = (0..KEYS)
                .map(|index| {
                    let number = (first + index) % self.values.count;
                    self.values.block(if index < KEYS / 2 { number } else { self.values.count + number })
                })
                .collect();
            self.presence.ask(self.asked, &keys, self.patience);
            self.since = Some(Instant::now());
        }
    }
}
