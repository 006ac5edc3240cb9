//! What the scheduler learns of a step: errors, loads that ended, reports.
#![expect(clippy::unwrap_used, reason = "where the model of the engine is broken, the test has failed")]

use super::*;

impl World {
    pub(super) fn process_output(&mut self) -> Result<(), Violation> {
        let Some(mut output) = self.unprocessed.take() else { return Ok(()) };
        if !output.errors.is_empty() {
            self.roll_back(&output.errors);
        }
        for ((number, incarnation), what) in &output.mismatched {
            if self.requests.get(number).is_some_and(|request| request.incarnation == *incarnation) {
                return Err(format!("other bytes than computed, and no error: {what}"));
            }
        }
        for (rank, report) in std::mem::take(&mut output.reports) {
            self.queue_report(rank, report);
        }
        self.absorb_reports()?;
        for (id, bad) in &output.received {
            let Some((number, request)) = self.requests.iter_mut().find(|(_, request)| request.id == *id)
            else {
                continue;
            };
            let number = *number;
            request.received += 1;
            request.load_failed |= bad;
            if request.received == self.scenario.ranks as u32 {
                self.resume(number);
            }
        }
        for step in &output.scheduled {
            if let Some(request) = self.requests.get(&step.request)
                && request.incarnation == step.incarnation
                && step.end == request.tokens.len()
            {
                self.planner.finish(&request.id);
                self.give_up_blocks(step.request);
                self.requests.remove(&step.request);
                self.running.retain(|running| *running != step.request);
                self.counts.finished += 1;
            }
        }
        Ok(())
    }

    pub(super) fn resume(&mut self, number: u64) {
        let request = self.requests.get_mut(&number).unwrap();
        if request.aborted {
            self.give_up_blocks(number);
            self.requests.remove(&number);
            return;
        }
        request.status = Status::Running;
        if request.load_failed {
            self.counts.failed_async_loads += 1;
            if self.scenario.windows.len() > 1 {
                self.preempt(number);
                return;
            }
            request.computed = request.local;
        }
        self.running.push(number);
        self.cache_blocks(number);
    }

    /// Every request that has computed on a block that was not loaded begins again where the block is.
    pub(super) fn roll_back(&mut self, errors: &BTreeSet<u32>) {
        let bt = self.scenario.block_tokens;
        trace!(self, "not loaded: {errors:?}");
        // Whoever has computed on them may be gone already, and what it computed is in the cache as well.
        self.cached.clear();
        self.pool.iter_mut().for_each(|block| block.cached_as = None);
        for number in self.running.clone() {
            let request = &self.requests[&number];
            let blocks = request.computed.div_ceil(bt);
            let first = request
                .tables
                .iter()
                .filter_map(|table| table.iter().take(blocks).position(|block| errors.contains(block)))
                .min();
            let Some(first) = first else { continue };
            self.counts.rolled_back += 1;
            // The step that was scheduled ahead is dropped as a whole. Blocks that others use, offloads among them, are
            // not computed again in place.
            let restart = request.last_start.min(first * bt);
            let mut rewritten = request.tables.iter().flat_map(|table| table.iter().skip(restart / bt));
            let shared = rewritten.any(|block| self.pool[*block as usize].users > 1);
            if shared || self.scenario.windows.len() > 1 || self.random.chance(500) {
                self.preempt(number);
            } else {
                let request = self.requests.get_mut(&number).unwrap();
                request.incarnation += 1;
                request.computed = restart;
            }
        }
    }

    pub(super) fn absorb_reports(&mut self) -> Result<(), Violation> {
        for rank in 0..self.reports.len() {
            while self.reports[rank].front().is_some_and(|(due, _)| *due <= self.step) {
                let Some((_, report)) = self.reports[rank].pop_front() else { break };
                let report = Report::decode(&report.encode()).map_err(|error| error.to_string())?;
                self.expects_plan |= report.hello.is_some();
                for end in &report.ended {
                    trace!(self, "rank {rank} reports {end:?}");
                }
                for ended in self.planner.absorb(&report) {
                    // A load that failed makes a rank forget slots.
                    self.expects_plan = true;
                    if self.bug == Some(Bug::IgnoreHolds) {
                        continue;
                    }
                    let held = self.held.remove(&ended.id).unwrap_or_default();
                    if held != ended.released {
                        return Err(format!(
                            "{:?} releases {:?}, but held {held:?}",
                            ended.id, ended.released
                        ));
                    }
                    if self.bug == Some(Bug::DropRelease) && self.random.chance(100) {
                        continue;
                    }
                    for block in held {
                        self.let_go(block);
                    }
                }
                if self.random.chance(20) {
                    self.counts.repeated_reports += u64::from(!report.ended.is_empty());
                    let again = Report { hello: None, loaded_bytes: 0, ..report };
                    if !self.planner.absorb(&again).is_empty() {
                        return Err("a rank that repeats itself was counted twice".into());
                    }
                }
            }
        }
        self.planner.take_removed();
        Ok(())
    }
}
