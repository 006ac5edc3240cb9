//! What users and accidents do: requests, aborts, resets, damage, crashes.
#![expect(clippy::unwrap_used, reason = "where the model of the engine is broken, the test has failed")]

use super::*;

impl World {
    pub(crate) fn submit_request(&mut self) {
        let s = &self.scenario;
        let document = self.random.below(s.documents);
        let shared = self.random.between(1, s.tokens_max - 4);
        let own = self.random.between(1, s.tokens_max - shared);
        let mut tokens: Vec<u32> =
            (0..shared).map(|i| mix((document as u64) << 32 | i as u64) as u32 % 50_000).collect();
        let salt = self.random.next();
        tokens.extend((0..own).map(|i| mix(salt ^ i as u64) as u32 % 50_000));
        let visible =
            if self.random.chance(500) { tokens.len() } else { self.random.between(1, tokens.len()) };
        let mut options = RequestOptions { prompt_tokens: visible, ..RequestOptions::default() };
        if self.random.chance(30) {
            options.skip_load = true;
        }
        if self.random.chance(30) {
            options.skip_store = true;
        }
        if self.random.chance(50) {
            options.max_load_tokens = self.random.below(tokens.len());
            options.max_store_tokens = self.random.below(tokens.len());
        }
        self.add(tokens, visible, options);
    }

    pub(crate) fn add(&mut self, tokens: Vec<u32>, visible: usize, options: RequestOptions) {
        let mut prefix = Vec::with_capacity(tokens.len() + 1);
        prefix.push(17);
        for token in &tokens {
            prefix.push(mix(prefix[prefix.len() - 1] ^ u64::from(*token)));
        }
        let number = self.next_request;
        self.next_request += 1;
        self.counts.requests += 1;
        let request = Request {
            id: format!("r{number}"),
            weights: vec![0; tokens.len() / self.scenario.block_tokens + 1],
            tokens,
            prefix,
            visible,
            computed: 0,
            last_start: 0,
            tables: vec![Vec::new(); self.scenario.windows.len()],
            incarnation: 0,
            status: Status::Waiting,
            aborted: false,
            next_tokens: 0,
            local: 0,
            external: 0,
            received: 0,
            load_failed: false,
            options,
        };
        self.requests.insert(number, request);
        self.waiting.push_back(number);
    }

    pub(super) fn abort(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let pick = self.random.below(self.requests.len());
        let Some(number) = self.requests.keys().nth(pick).copied() else { return };
        self.counts.aborts += 1;
        let request = &mut self.requests.get_mut(&number).unwrap();
        self.planner.finish(&request.id);
        if request.status == Status::Loading {
            // The engine keeps the blocks until the load has ended.
            request.aborted = true;
            return;
        }
        self.give_up_blocks(number);
        self.requests.remove(&number);
        self.waiting.retain(|waiting| *waiting != number);
        self.running.retain(|running| *running != number);
    }

    pub(super) fn reset(&mut self) {
        trace!(self, "reset");
        self.counts.resets += 1;
        self.counts.resets_with_jobs += u64::from(self.planner.jobs_in_flight() > 0);
        self.planner.reset();
        self.expects_plan = true;
        self.reset_unsent = true;
        self.weights += 1;
        self.cached.clear();
        for block in &mut self.pool {
            block.cached_as = None;
        }
        for request in self.requests.values_mut() {
            // As the connector does.
            request.next_tokens = 0;
        }
    }

    pub(super) fn damage(&mut self) {
        let pick = self.random.below(self.ranks.len());
        let rank = &self.ranks[pick];
        // A slot that is verified is trusted until its load has ended, on whatever rank reads it.
        let busy = |rank: &Rank| rank.store.stats().jobs_in_flight > 0;
        if !(busy(rank) || self.scenario.replicas && self.ranks.iter().any(busy)) {
            let slot = SlotId(self.random.below(rank.slab.slot_count()) as u32);
            self.counts.damaged += u64::from(rank.slab.damage(slot));
        }
    }

    /// SIGKILL: what is in the slabs stays, half-copied slots included; the users ask again.
    pub(super) fn crash(&mut self) {
        trace!(self, "crash");
        self.counts.crashes += 1;
        let half = self.ranks.iter().any(|rank| rank.slab.half_filled() > 0);
        self.counts.crashes_while_copying += u64::from(half);
        let bug = self.bug;
        let ranks = std::mem::take(&mut self.ranks);
        for (index, rank) in ranks.into_iter().enumerate() {
            rank.memory.kill();
            rank.copies.kill();
            rank.remote.kill();
            let slab = Arc::clone(&rank.slab);
            drop(rank);
            let rank = Rank::new(index, &self.scenario, bug, &mut self.random, Some(slab), &self.servers);
            self.ranks.push(rank);
        }
        self.count_remote();
        self.planner = planner(&self.scenario, bug, &self.servers, self.random.next());
        self.expects_plan = true;
        self.unprocessed = None;
        self.held.clear();
        self.lied_about.clear();
        self.reports.iter_mut().for_each(VecDeque::clear);
        self.waiting.clear();
        self.running.clear();
        self.empty_pool();
        for (_, request) in std::mem::take(&mut self.requests) {
            if !request.aborted {
                let visible = request.visible;
                let options = RequestOptions { prompt_tokens: visible, ..request.options };
                self.add(request.tokens, visible, options);
            }
        }
    }
}
