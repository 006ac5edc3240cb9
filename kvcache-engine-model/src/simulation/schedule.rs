//! What a step computes.
//!
//! After vLLM V1's scheduler (0.32): requests that run come first, each with its next token or the next chunk of its
//! prompt, as far as the step's tokens go; then those that wait, first come, first served, if their whole prompt fits
//! into the free blocks. Where a running request finds no block, the one that was admitted last loses its blocks and
//! computes them again later.

use super::Simulation;
use crate::connector::{Connector, Found, StepMoves};
use crate::cost::Batch;

/// What a step does.
#[derive(Default)]
pub(super) struct Step {
    pub(super) batch: Batch,
    /// Requests and how many tokens of each.
    pub(super) scheduled: Vec<(usize, u64)>,
    pub(super) moves: StepMoves,
}

impl Simulation<'_> {
    pub(super) fn schedule(&mut self) -> Step {
        let mut step = Step::default();
        let mut tokens_left = self.profile.step_tokens_max;
        let preempted = self.schedule_running(&mut step, &mut tokens_left);
        if !preempted {
            self.schedule_waiting(&mut step, &mut tokens_left);
        }
        if let Some(connector) = &mut self.connector {
            for (request, tokens) in &step.scheduled {
                let Some(live) = &mut self.live[*request] else { continue };
                let computed_tokens = live.computed_tokens + tokens;
                connector.offload(
                    &mut live.slots,
                    computed_tokens,
                    live.input_tokens,
                    &live.blocks,
                    &mut self.pool,
                    &mut step.moves,
                );
            }
        }
        step
    }

    /// Returns whether a request lost its blocks.
    fn schedule_running(&mut self, step: &mut Step, tokens_left: &mut u64) -> bool {
        let (mut position, mut preempted) = (0, false);
        while position < self.running.len() && *tokens_left > 0 {
            let request = self.running[position];
            let Some(live) = &self.live[request] else { unreachable!("what runs is live") };
            let tokens = (live.total_tokens - live.computed_tokens).min(*tokens_left);
            let named = (live.computed_tokens / u64::from(self.profile.block_tokens)) as usize;
            while !self.extend(request, tokens, named) {
                // Blocks that are being stored are free soon: vLLM waits for those rather than preempt.
                if self.connector.as_ref().is_some_and(Connector::holds_blocks) {
                    return preempted;
                }
                let Some(victim) = self.running.pop() else { unreachable!("the request itself runs") };
                self.preempt(victim);
                preempted = true;
                if victim == request {
                    return preempted;
                }
            }
            self.add_to(step, request, tokens);
            *tokens_left -= tokens;
            position += 1;
        }
        preempted
    }

    fn schedule_waiting(&mut self, step: &mut Step, tokens_left: &mut u64) {
        let (mut position, mut backlog) = (0, self.backlog_tokens());
        while position < self.waiting.len()
            && *tokens_left > 0
            && self.running.len() < self.profile.sequences_max as usize
        {
            let request = self.waiting[position];
            match self.admit(request, step, *tokens_left, backlog) {
                Admission::Admitted { tokens, left } => {
                    backlog += left;
                    self.waiting.remove(position);
                    self.running.push(request);
                    self.add_to(step, request, tokens);
                    *tokens_left -= tokens;
                }
                Admission::Waits => position += 1,
                Admission::NoRoom => break,
            }
        }
    }

    fn admit(&mut self, request: usize, step: &mut Step, tokens_left: u64, backlog: u64) -> Admission {
        let block_tokens = u64::from(self.profile.block_tokens);
        let Some(live) = &mut self.live[request] else { unreachable!("what waits is live") };
        let total_tokens = live.total_tokens;
        // At least one token is computed: it is what the next one is sampled from.
        let within = ((total_tokens - 1) / block_tokens) as usize;
        let remembered = self.pool.remembered(&live.contents[..within.min(live.contents.len())]);
        let local_tokens = remembered as u64 * block_tokens;
        let (compute, step_tokens_max) = (self.profile.compute, self.profile.step_tokens_max);
        // What is admitted already is computed before it.
        let compute_ns = |tokens: u64| compute.prefill_ns(tokens + backlog, step_tokens_max);
        if let Some(connector) = &mut self.connector
            && connector.waits(&mut live.slots, local_tokens, &compute_ns, self.now_ns)
        {
            return Admission::Waits;
        }
        if !self.profile.chunked_prefill && total_tokens - local_tokens > tokens_left {
            return Admission::NoRoom;
        }
        // The whole prompt must fit. Remembered blocks that nobody holds count as free, but are not for others.
        let unheld = self.pool.unheld(&live.contents[..remembered]);
        let needed = total_tokens.div_ceil(block_tokens) - remembered as u64 + u64::from(unheld);
        if needed > u64::from(self.pool.free_count()) {
            return Admission::NoRoom;
        }
        let mut found = Found::default();
        if let Some(connector) = &mut self.connector {
            let alone_ns = |tokens: u64| compute.prefill_ns(tokens, step_tokens_max);
            found = connector.load(
                &mut live.slots,
                local_tokens,
                total_tokens,
                &alone_ns,
                self.now_ns,
                &mut step.moves,
            );
        }
        if !live.was_admitted {
            live.was_admitted = true;
            if request >= self.warm_up_requests {
                self.counted.input_tokens += live.input_tokens;
                self.counted.hit_tokens.device += local_tokens;
                self.counted.hit_tokens.l1 += found.l1_tokens;
                self.counted.hit_tokens.l2 += found.l2_tokens;
            }
        }
        live.computed_tokens = local_tokens + found.tokens();
        live.blocks
            .extend(live.contents[..remembered].iter().map(|content| self.pool.hold_remembered(*content)));
        let left = total_tokens - live.computed_tokens;
        let tokens = left.min(tokens_left);
        let extended = self.extend(request, tokens, remembered);
        assert!(extended, "the whole prompt fits");
        Admission::Admitted { tokens, left }
    }

    /// Tokens that what runs has still to compute before it answers.
    fn backlog_tokens(&self) -> u64 {
        let live = self.running.iter().filter_map(|request| self.live[*request].as_ref());
        live.map(|live| live.input_tokens.saturating_sub(live.computed_tokens)).sum()
    }

    /// Gives a request blocks for `tokens` tokens more, and those from `named` on their names as far as they are
    /// full then; false if there are too few, and nothing has changed.
    fn extend(&mut self, request: usize, tokens: u64, named: usize) -> bool {
        let Some(live) = &mut self.live[request] else { unreachable!("what is scheduled is live") };
        let (until, block_tokens) = (live.computed_tokens + tokens, u64::from(self.profile.block_tokens));
        let needed = (until.div_ceil(block_tokens) as usize).saturating_sub(live.blocks.len());
        if needed > self.pool.free_count() as usize {
            return false;
        }
        for _ in 0..needed {
            live.blocks.extend(self.pool.take());
        }
        // Before the step has computed them, so that prompts that come together share what the first of them computes.
        let full = ((until / block_tokens) as usize).min(live.contents.len());
        for position in named..full {
            self.pool.name(live.blocks[position], live.contents[position]);
        }
        true
    }

    fn add_to(&mut self, step: &mut Step, request: usize, tokens: u64) {
        let Some(live) = &self.live[request] else { unreachable!("what is scheduled is live") };
        if tokens == 1 && live.computed_tokens >= live.input_tokens {
            step.batch.add_decode(live.computed_tokens);
        } else {
            step.batch.add_prefill(live.computed_tokens, tokens);
        }
        step.scheduled.push((request, tokens));
    }

    fn preempt(&mut self, request: usize) {
        let Some(live) = &mut self.live[request] else { unreachable!("what runs is live") };
        self.pool.release(&live.blocks);
        live.blocks.clear();
        live.computed_tokens = 0;
        self.counted.preemptions += 1;
        self.waiting.push_front(request);
    }
}

enum Admission {
    Admitted {
        /// In this step.
        tokens: u64,
        /// Until it answers.
        left: u64,
    },
    /// It is passed over.
    Waits,
    /// Nobody behind it is admitted either.
    NoRoom,
}
