//! A step of the workers: stores execute plans, and attention checks and writes pages.

use super::*;

impl World {
    pub(super) fn execute(
        &mut self,
        plan: Option<Vec<u8>>,
        scheduled: Vec<Scheduled>,
    ) -> Result<Output, Violation> {
        let mut output = Output::default();
        let stream = self.scenario.stream();
        let hooks_fire = !(self.faults_on && self.random.chance(self.scenario.lost_hooks));
        for index in 0..self.ranks.len() {
            let plan = match &plan {
                Some(bytes) => Some(StepPlan::decode(bytes).map_err(|error| error.to_string())?),
                None => None,
            };
            let loads = plan.iter().flat_map(|plan| &plan.jobs).any(|job| job.kind == JobKind::LoadLayerwise);
            self.counts.lost_hooks += u64::from(loads && !hooks_fire);
            self.counts.replica_loads += u64::from(loads && self.scenario.replicas && index > 0);
            self.check_slots(index, plan.as_ref())?;
            self.lie(index, plan.as_ref());
            let pieces = self.pieces(index);
            let rank = &mut self.ranks[index];
            if let Some(plan) = plan {
                rank.store.begin_step(plan, stream);
            }
            rank.store.start_loads();
            rank.copies.work(pieces);
            rank.remote.work();
        }
        if !scheduled.is_empty() {
            self.forward(&scheduled, hooks_fire, &mut output)?;
        }
        for index in 0..self.ranks.len() {
            let pieces = self.pieces(index);
            let rank = &mut self.ranks[index];
            rank.store.end_step(stream);
            rank.copies.work(pieces);
            let (received, failed) = rank.store.take_received();
            output.received.extend(received.into_iter().map(|id| {
                let bad = failed.contains(&id);
                (id, bad)
            }));
            let errors = rank.store.take_load_errors();
            self.counts.load_errors += errors.len() as u64;
            if self.bug != Some(Bug::SwallowErrors) {
                output.errors.extend(errors);
            }
            if let Some(report) = rank.store.take_report() {
                output.reports.push((index, report));
            }
            if let Some(conflict) = self.ranks[index].copies.conflict() {
                return Err(format!("rank {index}: {conflict}"));
            }
        }
        output.scheduled = scheduled;
        Ok(output)
    }

    /// Slots are filled only where they may be; what was found in others may be loaded.
    fn check_slots(&mut self, index: usize, plan: Option<&StepPlan>) -> Result<(), Violation> {
        let usable = self.ranks[index].memory.usable_slots();
        for job in plan.iter().flat_map(|plan| &plan.jobs) {
            let Some(transfer) = job.transfers.iter().find(|transfer| transfer.slot.0 >= usable) else {
                continue;
            };
            match job.kind {
                JobKind::Offload | JobKind::Fetch => {
                    let slot = transfer.slot.0;
                    return Err(format!("rank {index}: slot {slot} is filled, and {usable} are usable"));
                }
                JobKind::LoadLayerwise | JobKind::LoadAsync => self.counts.loads_before_pinned += 1,
                JobKind::Demote => {}
            }
        }
        Ok(())
    }

    /// Copies that a rank does on the side.
    fn pieces(&mut self, rank: usize) -> usize {
        self.random.below(self.scenario.pieces_a_step[rank] + 1)
    }

    /// Planted: ends are reported before the copies have ended.
    pub(super) fn lie(&mut self, rank: usize, plan: Option<&StepPlan>) {
        let lies = |kind: JobKind| match self.bug {
            Some(Bug::ServeFilling) => kind == JobKind::Offload,
            Some(Bug::SkipPin) => kind != JobKind::Offload,
            _ => false,
        };
        let jobs = plan.iter().flat_map(|plan| &plan.jobs).filter(|job| lies(job.kind));
        let ended: Vec<JobEnd> = jobs.map(|job| JobEnd::whole(job.id, true)).collect();
        if !ended.is_empty() {
            self.lied_about.extend(ended.iter().map(|end| end.id));
            let usable_slots = self.ranks[rank].memory.usable_slots();
            let report = Report { rank: rank as u32, usable_slots, ended, ..Report::default() };
            self.reports[rank].push_back((self.step, report));
        }
    }

    pub(super) fn queue_report(&mut self, rank: usize, mut report: Report) {
        report.ended.retain(|end| !self.lied_about.contains(&end.id));
        if self.bug == Some(Bug::LoseEnds) && self.random.chance(50) {
            report.ended.pop();
        }
        let delay = if self.faults_on && self.random.chance(self.scenario.report_delay) {
            self.counts.delayed_reports += 1;
            self.random.between(1, 5) as u64
        } else {
            0
        };
        let after = self.reports[rank].back().map_or(0, |(due, _)| *due);
        self.reports[rank].push_back(((self.step + delay).max(after), report));
    }

    /// The ranks go from layer to layer together, as their collectives make them do: what one of them gets wrong is
    /// in the next layer of all.
    pub(super) fn forward(
        &mut self,
        scheduled: &[Scheduled],
        hooks_fire: bool,
        output: &mut Output,
    ) -> Result<(), Violation> {
        let (layers, stream) = (self.scenario.layers, self.scenario.stream());
        let waits_first = !self.scenario.hooks;
        let mut spoiled = BTreeSet::new();
        for layer in 0..layers {
            let before = spoiled.clone();
            for index in 0..self.ranks.len() {
                if hooks_fire && !waits_first {
                    self.ranks[index].store.wait_layer(layer, stream);
                } else if hooks_fire && layer == 0 {
                    self.ranks[index].store.wait_layer(layers - 1, stream);
                }
                self.compute(index, layer, scheduled, &before, &mut spoiled, output)?;
                if !self.scenario.hooks || self.random.chance(100) {
                    self.counts.lost_store_hooks += u64::from(self.ranks[index].store.has_fresh_offloads());
                } else {
                    self.ranks[index].store.store_layer(layer, stream);
                }
            }
        }
        Ok(())
    }

    /// Attention of one layer: reads what is before a chunk and writes the chunk's pages.
    pub(super) fn compute(
        &mut self,
        index: usize,
        layer: usize,
        scheduled: &[Scheduled],
        spoiled_before: &BTreeSet<(u64, u32)>,
        spoiled: &mut BTreeSet<(u64, u32)>,
        output: &mut Output,
    ) -> Result<(), Violation> {
        let bt = self.scenario.block_tokens;
        let group = layer % self.scenario.windows.len();
        let shard = self.scenario.shard(index);
        let rank = &self.ranks[index];
        for step in scheduled {
            let request = &self.requests[&step.request];
            if request.incarnation != step.incarnation {
                // Rolled back after this step had been scheduled: whatever it computes is dropped.
                continue;
            }
            let table = &request.tables[group];
            let who = (step.request, step.incarnation);
            let mut good = !spoiled_before.contains(&who);
            self.counts.spoiled_by_another += u64::from(!good);
            let seen = self.scenario.first_block(group, step.start);
            for (block, id) in table.iter().enumerate().take(step.start.div_ceil(bt)).skip(seen) {
                let tokens = ((block + 1) * bt).min(step.start);
                // The last block may have been begun with older weights and been marked with the new ones since.
                let weights = if block == step.start / bt { None } else { Some(request.weights[block]) };
                let expected = |weights| content(request.prefix[tokens], layer, shard, weights);
                let found = rank.page(&self.scenario, layer, *id);
                let right = match weights {
                    Some(weights) => found == Some(expected(weights)),
                    None => (1..=self.weights).rev().any(|weights| found == Some(expected(weights))),
                };
                if !right {
                    good = false;
                    spoiled.insert(who);
                    output.mismatched.entry(who).or_insert_with(|| {
                        format!(
                            "{} at tokens {}..{}: block {block} ({}) of layer {layer} on rank {index} holds {found:x?}",
                            request.id, step.start, step.end, *id
                        )
                    });
                }
                self.counts.pages_checked += 1;
            }
            for (block, id) in table.iter().enumerate().take(step.end.div_ceil(bt)).skip(step.start / bt) {
                let tokens = ((block + 1) * bt).min(step.end);
                let value = if good {
                    content(request.prefix[tokens], layer, shard, request.weights[block])
                } else {
                    mix(self.step ^ 0xbad)
                };
                if rank.is_in_use(&self.scenario, layer, *id) {
                    return Err(format!("rank {index}: engine block {id} is computed while a copy uses it"));
                }
                rank.set_page(&self.scenario, layer, *id, value);
            }
        }
        Ok(())
    }
}
