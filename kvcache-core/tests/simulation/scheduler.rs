//! A step of the scheduler: who computes what, and what the planner is asked.
#![expect(clippy::unwrap_used, reason = "where the model of the engine is broken, the test has failed")]

use super::*;

impl World {
    pub(crate) fn engine_step(&mut self) -> Result<(), Violation> {
        self.step += 1;
        let elapsed = 1 + self.random.below(3) as u64;
        self.now_ms += elapsed;
        self.servers.advance(elapsed);
        if !self.scenario.ahead {
            self.process_output()?;
        }
        let scheduled = self.schedule()?;
        let now = Duration::from_millis(self.now_ms);
        let tokens = scheduled.iter().map(|s| s.end - s.start).sum();
        let plan = match (self.planner.take_plan(tokens, now), self.bug) {
            (None, Some(Bug::EmptyPlans)) => Some(StepPlan::default()),
            (plan, _) => plan,
        };
        // What comes from and goes to L2 comes and goes when it will.
        if plan.is_some() && !self.expects_plan && self.scenario.remote.is_none() {
            return Err("a step without work has a plan".into());
        }
        self.expects_plan = false;
        self.reset_unsent &= self.planner.directory().is_none();
        for job in plan.iter().flat_map(|plan| &plan.jobs) {
            trace!(self, "{job:?}");
        }
        let plan = plan.map(|plan| plan.encode());
        if self.scenario.ahead {
            self.process_output()?;
        }
        let output = self.execute(plan, scheduled)?;
        self.unprocessed = Some(output);
        self.check()
    }

    pub(super) fn schedule(&mut self) -> Result<Vec<Scheduled>, Violation> {
        let mut budget = self.scenario.step_tokens;
        let mut scheduled: Vec<Scheduled> = Vec::new();
        for number in self.running.clone() {
            if !self.running.contains(&number) {
                continue;
            }
            let request = &self.requests[&number];
            let left = request.visible - request.computed;
            if left == 0 || budget == 0 {
                continue;
            }
            let chunk = self.random.between(1, left.min(budget));
            self.slide(number);
            let end = self.requests[&number].computed + chunk;
            let fits = loop {
                if self.grow_tables(number, end, None) {
                    break true;
                }
                let victim = self.running[self.running.len() - 1];
                if scheduled.iter().any(|s| s.request == victim) {
                    break false;
                }
                self.preempt(victim);
                if victim == number {
                    break false;
                }
            };
            if fits {
                budget -= chunk;
                self.advance(number, chunk, &mut scheduled);
            }
        }
        let mut passed_over = VecDeque::new();
        while budget > 0 && self.running.len() < self.scenario.running_max {
            let Some(number) = self.waiting.pop_front() else { break };
            match self.admit(number, budget, &mut scheduled)? {
                Admission::Started(tokens) => budget -= tokens,
                Admission::AskAgain => passed_over.push_back(number),
                Admission::NoRoom => {
                    self.waiting.push_front(number);
                    break;
                }
            }
        }
        while let Some(number) = passed_over.pop_back() {
            self.waiting.push_front(number);
        }
        for step in &scheduled {
            let request = &self.requests[&step.request];
            trace!(self, "{} computes {}..{} on {:?}", request.id, step.start, step.end, request.tables);
            self.offload(step.request, step.end);
        }
        Ok(scheduled)
    }

    /// Blocks that have left the window go back to the pool.
    pub(super) fn slide(&mut self, number: u64) {
        for group in 0..self.scenario.windows.len() {
            let first = self.scenario.first_block(group, self.requests[&number].computed);
            let first = first.min(self.requests[&number].tables[group].len());
            for index in 0..first {
                let block = &mut self.requests.get_mut(&number).unwrap().tables[group][index];
                let old = std::mem::replace(block, 0);
                self.let_go(old);
            }
        }
    }

    pub(super) fn advance(&mut self, number: u64, chunk: usize, scheduled: &mut Vec<Scheduled>) {
        let (bt, weights) = (self.scenario.block_tokens, self.weights);
        let request = self.requests.get_mut(&number).unwrap();
        let (start, end) = (request.computed, request.computed + chunk);
        for index in start / bt..end.div_ceil(bt) {
            request.weights[index] = weights;
        }
        request.computed = end;
        request.last_start = start;
        if request.computed == request.visible && request.visible < request.tokens.len() {
            request.visible += 1;
        }
        scheduled.push(Scheduled { request: number, incarnation: request.incarnation, start, end });
        self.cache_blocks(number);
    }

    pub(super) fn extend(&mut self, number: u64, tokens: usize) {
        let request = &self.requests[&number];
        let known = self.planner.known_hashes(&request.id);
        if self.scenario.keys_from_tokens {
            let new = request.tokens.get(known..tokens).unwrap_or_default();
            self.planner.extend_tokens(&request.id, new.iter().copied());
        } else {
            let hashes: Vec<[u8; 8]> = (known..tokens / self.scenario.block_tokens)
                .map(|block| request.prefix[(block + 1) * self.scenario.block_tokens].to_le_bytes())
                .collect();
            self.planner.extend_hashes(&request.id, hashes.iter().map(|hash| &hash[..]));
        }
    }

    pub(super) fn admit(
        &mut self,
        number: u64,
        budget: usize,
        scheduled: &mut Vec<Scheduled>,
    ) -> Result<Admission, Violation> {
        let bt = self.scenario.block_tokens;
        let (id, visible) = (self.requests[&number].id.clone(), self.requests[&number].visible);
        self.planner.add_request(&id, self.requests[&number].options.clone());
        self.extend(number, visible);
        let mut local_blocks = Vec::new();
        if self.scenario.local_cache {
            let request = &self.requests[&number];
            while (local_blocks.len() + 1) * bt < visible
                && let Some(block) = self.cached.get(&request.prefix[(local_blocks.len() + 1) * bt])
            {
                local_blocks.push(*block);
            }
        }
        let local = local_blocks.len() * bt;
        let answer = self.planner.lookup(&id, local, visible, Duration::from_millis(self.now_ms));
        if self.planner.lookup(&id, local, visible, Duration::from_millis(self.now_ms)) != answer {
            return Err("two questions at once have two answers".into());
        }
        let (mut external, asynchronous) = match answer {
            Lookup::Wait => {
                self.counts.waits += 1;
                return Ok(Admission::AskAgain);
            }
            _ if self.bug == Some(Bug::WaitForEver) => return Ok(Admission::AskAgain),
            Lookup::Hit { tokens, asynchronous } => (tokens, asynchronous),
            Lookup::Miss(_) => (0, false),
        };
        if external > 0 && (external % bt > 0 || local + external >= visible) {
            return Err(format!("a hit of {external} tokens after {local} of {visible}"));
        }
        if external > 0 && self.faults_on && self.random.chance(30) {
            self.counts.declined += 1;
            external = 0;
        }
        for block in &local_blocks {
            self.hold(*block);
        }
        let weights = self.weights;
        let request = self.requests.get_mut(&number).unwrap();
        request.tables[0].clone_from(&local_blocks);
        let boundary = local + external;
        request.weights[..boundary / bt].fill(weights);
        let asynchronous = asynchronous && external > 0;
        if asynchronous && !self.leaves_room(number) {
            self.give_up_blocks(number);
            return Ok(Admission::NoRoom);
        }
        let chunk = if asynchronous { 0 } else { self.random.between(1, (visible - boundary).min(budget)) };
        if !self.grow_tables(number, boundary, (external > 0).then_some(boundary))
            || !self.grow_tables(number, boundary + chunk, None)
        {
            self.give_up_blocks(number);
            return Ok(Admission::NoRoom);
        }
        let request = self.requests.get_mut(&number).unwrap();
        self.planner.commit_load(&id, external, &request.tables);
        self.expects_plan |= external > 0;
        request.local = local;
        request.external = external;
        request.computed = boundary;
        request.received = 0;
        request.load_failed = false;
        self.counts.loads += u64::from(external > 0);
        self.counts.loaded_tokens += external as u64;
        if asynchronous {
            self.counts.async_loads += 1;
            request.status = Status::Loading;
            return Ok(Admission::Started(0));
        }
        request.status = Status::Running;
        self.running.push(number);
        self.advance(number, chunk, scheduled);
        Ok(Admission::Started(chunk))
    }

    pub(super) fn offload(&mut self, number: u64, computed: usize) {
        if computed < self.requests[&number].next_tokens {
            return;
        }
        let lag = if self.random.chance(200) { self.scenario.block_tokens } else { 0 };
        self.extend(number, computed.saturating_sub(lag));
        let request = self.requests.get_mut(&number).unwrap();
        let mut tables = request.tables.clone();
        if self.faults_on && self.random.chance(self.scenario.bad_blocks) {
            let pick = self.random.below(tables[0].len());
            if let Some(block) = tables[0].get_mut(pick).filter(|block| **block != 0) {
                *block = 1_000_000;
                self.counts.bad_blocks += 1;
            }
        }
        let offloading = self.planner.offload(&request.id, computed, &tables);
        request.next_tokens = offloading.next_tokens;
        if let Some(job) = offloading.job {
            self.expects_plan = true;
            self.counts.offloads += 1;
            if self.bug != Some(Bug::IgnoreHolds) {
                for block in &offloading.held {
                    self.hold(*block);
                }
                self.held.insert(job, offloading.held);
            }
        }
    }
}
