//! The engine's blocks: a pool with reference counts and a prefix cache.
#![expect(clippy::unwrap_used, reason = "where the model of the engine is broken, the test has failed")]

use super::*;

impl World {
    pub(super) fn empty_pool(&mut self) {
        self.pool = vec![EngineBlock::default(); self.scenario.engine_blocks];
        self.free = (1..self.scenario.engine_blocks as u32).collect();
        self.cached.clear();
    }

    pub(super) fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop_front()?;
        let entry = &mut self.pool[block as usize];
        if let Some(prefix) = entry.cached_as.take() {
            self.cached.remove(&prefix);
        }
        entry.users = 1;
        Some(block)
    }

    pub(super) fn hold(&mut self, block: u32) {
        let Some(entry) = self.pool.get_mut(block as usize).filter(|_| block != 0) else { return };
        entry.users += 1;
        if entry.users == 1 {
            self.free.retain(|free| *free != block);
        }
    }

    pub(super) fn let_go(&mut self, block: u32) {
        let Some(entry) = self.pool.get_mut(block as usize).filter(|_| block != 0) else { return };
        entry.users -= 1;
        if entry.users == 0 {
            self.free.push_back(block);
        }
    }

    pub(super) fn give_up_blocks(&mut self, number: u64) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        let tables = std::mem::replace(&mut request.tables, vec![Vec::new(); self.scenario.windows.len()]);
        for block in tables.into_iter().flatten().rev() {
            self.let_go(block);
        }
    }

    /// Makes room for `tokens` tokens in every group; false, with nothing changed, if there is none.
    pub(super) fn grow_tables(&mut self, number: u64, tokens: usize, nulls: Option<usize>) -> bool {
        let blocks = tokens.div_ceil(self.scenario.block_tokens);
        let mut taken = Vec::new();
        for group in 0..self.scenario.windows.len() {
            let have = self.requests[&number].tables[group].len();
            for index in have..blocks {
                let null = nulls.is_some_and(|boundary| {
                    index < self.scenario.first_block(group, boundary) && index >= have
                });
                let Some(block) = (if null { Some(0) } else { self.allocate() }) else {
                    for (group, block) in taken.into_iter().rev() {
                        let table: &mut Vec<u32> = &mut self.requests.get_mut(&number).unwrap().tables[group];
                        table.pop();
                        self.let_go(block);
                    }
                    return false;
                };
                taken.push((group, block));
                self.requests.get_mut(&number).unwrap().tables[group].push(block);
            }
        }
        true
    }

    /// Whether all that loads and runs could grow to its end beside this request. Requests that load hold blocks and
    /// cannot be preempted: an engine that admitted them without this could fill up with them.
    pub(super) fn leaves_room(&self, number: u64) -> bool {
        let blocks = |request: &Request| {
            request.tokens.len().div_ceil(self.scenario.block_tokens) * self.scenario.windows.len()
        };
        let active = self.requests.iter().filter(|(_, request)| request.status != Status::Waiting);
        let used: usize = active.map(|(_, request)| blocks(request)).sum();
        used == 0 || used + blocks(&self.requests[&number]) < self.pool.len()
    }

    pub(super) fn preempt(&mut self, number: u64) {
        trace!(self, "{} is preempted", self.requests[&number].id);
        self.counts.preemptions += 1;
        self.give_up_blocks(number);
        let request = self.requests.get_mut(&number).unwrap();
        request.computed = 0;
        request.incarnation += 1;
        request.status = Status::Waiting;
        if self.random.chance(500) {
            request.next_tokens = 0;
        }
        self.running.retain(|running| *running != number);
        self.waiting.push_front(number);
    }

    /// Puts a request's full blocks into the engine's own cache.
    pub(super) fn cache_blocks(&mut self, number: u64) {
        if !self.scenario.local_cache {
            return;
        }
        let request = &self.requests[&number];
        for index in 0..request.computed / self.scenario.block_tokens {
            // What was computed with other weights is not found again.
            if request.weights[index] != self.weights {
                break;
            }
            let (block, prefix) =
                (request.tables[0][index], request.prefix[(index + 1) * self.scenario.block_tokens]);
            let entry = &mut self.pool[block as usize];
            if entry.cached_as.is_none() && !self.cached.contains_key(&prefix) {
                entry.cached_as = Some(prefix);
                self.cached.insert(prefix, block);
            }
        }
    }
}
