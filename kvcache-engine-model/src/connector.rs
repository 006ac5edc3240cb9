//! The connector: L1 as the real [`Directory`] keeps it, and the links on both sides of it.
//!
//! Decisions are made as the planner of `kvcache-core` makes them: a hit is the leading run of ready slots; a
//! request's new slots are stored as its prompt is computed, and it evicts at most a quarter of them; its hits are
//! touched when the prompt's last slot is stored; what comes from L2 has a quarter of the slots, by the planner's own
//! [`FetchRoom`], until its request is admitted.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::directory::{Directory, FillId, Refusal, evictions_per_request_max};
use kvcache_core::eviction::{EvictionPolicy, SlotId};
use kvcache_core::planner::{Arrival, FetchRoom};
use xxhash_rust::xxh3::xxh3_64;

use crate::block_pool::{BlockIndex, BlockPool, ContentId};
use crate::link::{Link, ns_per_byte};
use crate::outcome::Tiers;
use crate::profile::Profile;
use crate::remote::{Fetched, Remote};
use crate::setup::Loading;
use crate::time::{from_us, whole_ns};

pub(crate) struct Connector<'a> {
    profile: &'a Profile,
    loading: Loading,
    directory: Directory,
    evictions_per_request_max: usize,
    from_device: Link,
    /// In the order in which they end.
    stores: VecDeque<Store>,
    /// Engine blocks that are being stored and may not be used for anything else.
    held_blocks: usize,
    remote: Option<Remote>,
    /// Contents in L1 that came from L2 and were not loaded since.
    fetched: HashSet<ContentId>,
    /// The share of L1 that fetches have, and who waits for a part of it.
    room: FetchRoom,
    next_arrival: Arrival,
    /// Requests that are not admitted yet, by when they came.
    waiting: BTreeMap<Arrival, usize>,
    tiers: Tiers,
}

/// What the connector knows of a request.
#[derive(Default)]
pub(crate) struct RequestSlots {
    arrival: Arrival,
    keys: Vec<BlockKey>,
    contents: Vec<ContentId>,
    offloaded: usize,
    /// Nothing new can be stored before so many tokens are computed.
    next_tokens: u64,
    evicted: usize,
    refused: Option<Refusal>,
    /// Positions of the slots that it hit, until they are touched.
    hits: Vec<usize>,
    hits_taken: bool,
    /// How many of its leading slots will be there, and when, if what is on its way arrives.
    expected: usize,
    expected_ns: u64,
    was_asked_about: bool,
    /// How often it has sent for what L2 has of it, or wanted to.
    questions: u8,
    /// It is not admitted before this time.
    wait_until_ns: u64,
}

impl RequestSlots {
    fn expect(&mut self, position: usize, at_ns: u64) {
        self.expected = self.expected.max(position + 1);
        self.expected_ns = self.expected_ns.max(at_ns);
    }

    pub(crate) fn wait_until_ns(&self) -> u64 {
        self.wait_until_ns
    }
}

/// Blocks on their way to L1.
struct Store {
    end_ns: u64,
    fills: Vec<(SlotId, FillId)>,
    slots: Vec<(BlockKey, ContentId)>,
    held: Vec<BlockIndex>,
    /// What the request hit, to be touched behind them.
    hits: Vec<BlockKey>,
}

/// What a step moves.
#[derive(Default)]
pub(crate) struct StepMoves {
    load_bytes: u64,
    store_bytes: u64,
    /// Fetching from L2 before the step computes.
    fetch_ns: u64,
    cpu_us: f64,
    pinned: Vec<SlotId>,
    stores: Vec<Store>,
}

/// Tokens found for a request beyond the engine's own, by where they were.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) l1_tokens: u64,
    pub(crate) l2_tokens: u64,
}

impl Found {
    pub(crate) fn tokens(&self) -> u64 {
        self.l1_tokens + self.l2_tokens
    }
}

/// How long computing takes: of so many tokens behind those that are before them.
pub(crate) type ComputeNs<'a> = &'a dyn Fn(u64) -> f64;

/// A request waits for blocks from L2 this long at most, as the planner's default is.
const FETCH_WAIT_NS: u64 = 2_000_000_000;

impl<'a> Connector<'a> {
    pub(crate) fn new(
        profile: &'a Profile,
        loading: Loading,
        policy: Box<dyn EvictionPolicy>,
        remote: Option<Remote>,
    ) -> Self {
        let slots = profile.l1_slots();
        Self {
            profile,
            loading,
            directory: Directory::new(slots, policy),
            evictions_per_request_max: evictions_per_request_max(slots),
            from_device: Link::new(profile.host_link.from_device_gb_s),
            stores: VecDeque::new(),
            held_blocks: 0,
            remote,
            fetched: HashSet::new(),
            room: FetchRoom::new(evictions_per_request_max(slots)),
            next_arrival: 0,
            waiting: BTreeMap::new(),
            tiers: Tiers::default(),
        }
    }

    /// A request has come, whose blocks have these contents.
    pub(crate) fn request(&mut self, request: usize, contents: &[ContentId]) -> RequestSlots {
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        self.waiting.insert(arrival, request);
        let slot_blocks = self.profile.connector.slot_blocks as usize;
        // A slot is named by its last block.
        let contents: Vec<ContentId> =
            contents.iter().skip(slot_blocks - 1).step_by(slot_blocks).copied().collect();
        let keys = contents.iter().map(|content| key(*content)).collect();
        let next_tokens = self.profile.slot_tokens();
        RequestSlots { arrival, keys, contents, next_tokens, ..RequestSlots::default() }
    }

    /// What has ended by now.
    pub(crate) fn advance(&mut self, now_ns: u64, pool: &mut BlockPool) {
        while let Some(store) = self.stores.pop_front_if(|store| store.end_ns <= now_ns) {
            pool.release(&store.held);
            self.held_blocks -= store.held.len();
            self.finish_store(&store);
        }
        while let Some(block) = self.remote.as_mut().and_then(|remote| remote.come(now_ns)) {
            self.end_fetch(block);
            if self.waiting.contains_key(&block.arrival) && self.room.hold(block.arrival, block.slot) {
                self.directory.begin_load(&[key(block.content)]);
            }
        }
        let expired = self.room.expire(Duration::from_nanos(FETCH_WAIT_NS), Duration::from_nanos(now_ns));
        self.directory.end_load(&expired);
        if let Some(remote) = &mut self.remote {
            remote.advance(&self.directory, now_ns);
        }
    }

    fn end_fetch(&mut self, block: Fetched) {
        self.directory.complete_fills(&[(block.slot, block.fill)], true);
        self.fetched.insert(block.content);
    }

    /// The next request that waits for room in L1 for what L2 has of it, if there is room now.
    pub(crate) fn call(&mut self) -> Option<usize> {
        let remote = self.remote.as_ref()?;
        let arrival = self.room.call(remote.fetching())?;
        self.waiting.get(&arrival).copied()
    }

    /// When something here happens next, by itself.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let store = self.stores.front().map(|store| store.end_ns);
        store.into_iter().chain(self.remote.as_ref().and_then(Remote::next_ns)).min()
    }

    /// Whether engine blocks are in use that will be free by themselves.
    pub(crate) fn holds_blocks(&self) -> bool {
        self.held_blocks > 0
    }

    /// A new request, or one that has been called: sends for what L2 has of it.
    pub(crate) fn send_for(
        &mut self,
        slots: &mut RequestSlots,
        total_tokens: u64,
        compute_ns: ComputeNs<'_>,
        now_ns: u64,
    ) {
        if self.loading == Loading::Whole || self.remote.is_none() {
            return;
        }
        let run = self.leading_run(slots, total_tokens);
        let wanted: Vec<usize> = run
            .clone()
            .filter(|position| self.is_absent(&slots.keys[*position], slots.contents[*position]))
            .collect();
        let Some(remote) = &self.remote else { return };
        for position in run {
            if let Some(at_ns) = remote.fetched_at(slots.contents[position]) {
                slots.expect(position, at_ns);
            }
        }
        // Fetching that is twice as slow as computing is not begun.
        let tokens = wanted.len() as u64 * self.profile.slot_tokens();
        let fetch_ns = remote.would_end(now_ns, wanted.len()) - now_ns;
        if wanted.is_empty() || fetch_ns as f64 > 2.0 * compute_ns(tokens) {
            self.room.leave_queue(slots.arrival);
            return;
        }
        self.room.leave_queue(slots.arrival);
        let room = self.room.room_for(slots.arrival, remote.fetching());
        let asked_ns = remote.asked_ns(now_ns);
        slots.questions += 1;
        let reserved = match wanted.get(..room.min(wanted.len())).and_then(<[_]>::last) {
            Some(last) => self.reserve_fetch(slots, wanted[0], *last),
            None => Vec::new(),
        };
        let in_vain = Some(room).filter(|room| reserved.is_empty() && *room > 0);
        if reserved.len() < wanted.len()
            && slots.questions < FetchRoom::QUESTIONS_MAX
            && slots.evicted < self.evictions_per_request_max
        {
            self.room.queue(slots.arrival, wanted.len() - reserved.len(), in_vain);
        }
        self.tiers.refused_fetches += u64::from(slots.questions == 1 && reserved.is_empty());
        for (position, slot, fill) in reserved {
            if let Some(remote) = &mut self.remote {
                let (content, arrival) = (slots.contents[position], slots.arrival);
                let at_ns = remote.fetch(asked_ns, Fetched { slot, fill, content, arrival });
                slots.expect(position, at_ns);
            }
        }
    }

    /// Whether a request of which the engine has `local_tokens` waits for what is on its way, instead of being
    /// admitted.
    ///
    /// It waits if all will be there within 1.25 times what computing takes, those before it included, and
    /// otherwise for as long as computing takes, from when it is asked about first: the planner's rule for rates
    /// that it knows.
    pub(crate) fn waits(
        &mut self,
        slots: &mut RequestSlots,
        local_tokens: u64,
        compute_ns: ComputeNs<'_>,
        now_ns: u64,
    ) -> bool {
        if slots.wait_until_ns > now_ns {
            return true;
        }
        if slots.expected_ns <= now_ns || slots.was_asked_about {
            return false;
        }
        slots.was_asked_about = true;
        let slot_tokens = self.profile.slot_tokens();
        let ready_tokens = self.directory.match_prefix(&slots.keys).ready as u64 * slot_tokens;
        let missing = (slots.expected as u64 * slot_tokens).saturating_sub(ready_tokens.max(local_tokens));
        if missing == 0 {
            return false;
        }
        let (computed_ns, wait_ns) = (compute_ns(missing), slots.expected_ns - now_ns);
        slots.wait_until_ns = if wait_ns as f64 <= 1.25 * computed_ns && wait_ns <= FETCH_WAIT_NS {
            slots.expected_ns
        } else {
            self.tiers.late_requests += 1;
            now_ns + whole_ns(computed_ns).min(FETCH_WAIT_NS)
        };
        slots.wait_until_ns > now_ns
    }

    /// The positions behind the ready slots up to the first that is neither in L1, nor on its way, nor in L2.
    fn leading_run(&self, slots: &RequestSlots, total_tokens: u64) -> std::ops::Range<usize> {
        let limit = self.slots_within(slots, total_tokens);
        let ready = self.directory.match_prefix(&slots.keys[..limit]).ready;
        let is_there = |position: &usize| {
            let (key, content) = (&slots.keys[*position], slots.contents[*position]);
            !self.is_absent(key, content) || self.remote.as_ref().is_some_and(|remote| remote.has(key))
        };
        ready..ready + (ready..limit).take_while(is_there).count()
    }

    /// Neither in L1 nor on its way from L2.
    fn is_absent(&self, key: &BlockKey, content: ContentId) -> bool {
        let on_its_way = self.remote.as_ref().and_then(|remote| remote.fetched_at(content));
        on_its_way.is_none() && self.directory.slot_of(key).is_none()
    }

    /// Slots in L1 for the absent blocks from `first` to `last`.
    fn reserve_fetch(
        &mut self,
        slots: &mut RequestSlots,
        first: usize,
        last: usize,
    ) -> Vec<(usize, SlotId, FillId)> {
        let left = self.evictions_per_request_max.saturating_sub(slots.evicted);
        let reservation = self.directory.begin_offload(&slots.keys[..=last], first, left);
        slots.evicted += reservation.evicted.len();
        self.tiers.evicted_slots += reservation.evicted.len() as u64;
        if let Some(remote) = &self.remote {
            let keys: Vec<BlockKey> = reservation.reserved.iter().map(|of| slots.keys[of.index]).collect();
            remote.touch(&keys);
        }
        reservation.reserved.iter().map(|of| (of.index, of.slot, of.fill)).collect()
    }

    /// Slots that end within the request's tokens and leave one to compute.
    fn slots_within(&self, slots: &RequestSlots, total_tokens: u64) -> usize {
        let whole = total_tokens.saturating_sub(1) / self.profile.slot_tokens();
        usize::try_from(whole).unwrap_or(usize::MAX).min(slots.keys.len())
    }

    /// What can be loaded of a request that is admitted now, beyond the engine's `local_tokens`; from now on it
    /// counts as loaded in this step.
    pub(crate) fn load(
        &mut self,
        slots: &mut RequestSlots,
        local_tokens: u64,
        total_tokens: u64,
        compute_ns: ComputeNs<'_>,
        now_ns: u64,
        moves: &mut StepMoves,
    ) -> Found {
        self.waiting.remove(&slots.arrival);
        let held = self.room.admit(slots.arrival, Duration::from_nanos(now_ns));
        let found = self.load_what_is_there(slots, local_tokens, total_tokens, compute_ns, now_ns, moves);
        self.directory.end_load(&held);
        found
    }

    fn load_what_is_there(
        &mut self,
        slots: &mut RequestSlots,
        local_tokens: u64,
        total_tokens: u64,
        compute_ns: ComputeNs<'_>,
        now_ns: u64,
        moves: &mut StepMoves,
    ) -> Found {
        let cost = &self.profile.connector;
        let blocks = total_tokens / u64::from(self.profile.block_tokens);
        moves.cpu_us += cost.request_us + cost.block_us * blocks as f64;
        if self.loading == Loading::Whole {
            self.fetch_now(slots, total_tokens, now_ns, moves);
        }
        let limit = self.slots_within(slots, total_tokens);
        let ready = self.directory.match_prefix(&slots.keys[..limit]).ready;
        let slot_tokens = self.profile.slot_tokens();
        let tokens = (ready as u64 * slot_tokens).saturating_sub(local_tokens);
        let bytes = tokens * self.profile.kv_bytes_per_token;
        // Loading that is twice as slow as computing is not done. A connector that moves whole requests does not ask.
        let is_worth = self.loading == Loading::Whole || self.load_ns(bytes) <= 2.0 * compute_ns(tokens);
        if tokens == 0 || !is_worth {
            return Found::default();
        }
        let first = (local_tokens / slot_tokens) as usize;
        let pinned = self.directory.begin_load(&slots.keys[..ready]);
        moves.pinned.extend(pinned);
        moves.load_bytes += bytes;
        self.tiers.loaded_bytes += bytes;
        let from_l2 =
            slots.contents[first..ready].iter().filter(|content| self.fetched.remove(content)).count();
        let l2_tokens = (from_l2 as u64 * slot_tokens).min(tokens);
        Found { l1_tokens: tokens - l2_tokens, l2_tokens }
    }

    /// Fetches what L2 has while the step waits.
    fn fetch_now(&mut self, slots: &mut RequestSlots, total_tokens: u64, now_ns: u64, moves: &mut StepMoves) {
        let run = self.leading_run(slots, total_tokens);
        let Some(asked_ns) = self.remote.as_ref().map(|remote| remote.asked_ns(now_ns)) else { return };
        let wanted: Vec<usize> = run
            .filter(|position| self.is_absent(&slots.keys[*position], slots.contents[*position]))
            .collect();
        let mut end_ns = asked_ns;
        if let (Some(first), Some(last)) = (wanted.first(), wanted.last()) {
            for (position, slot, fill) in self.reserve_fetch(slots, *first, *last) {
                if let Some(remote) = &mut self.remote {
                    let (content, arrival) = (slots.contents[position], slots.arrival);
                    end_ns = end_ns.max(remote.fetch(asked_ns, Fetched { slot, fill, content, arrival }));
                }
            }
        }
        moves.fetch_ns = moves.fetch_ns.max(end_ns - now_ns);
        while let Some(block) = self.remote.as_mut().and_then(|remote| remote.come(end_ns)) {
            self.end_fetch(block);
        }
    }

    /// Stores what is new of a request of which `computed_tokens` are there after this step, `input_tokens` of them
    /// its prompt.
    pub(crate) fn offload(
        &mut self,
        slots: &mut RequestSlots,
        computed_tokens: u64,
        input_tokens: u64,
        blocks: &[BlockIndex],
        pool: &mut BlockPool,
        moves: &mut StepMoves,
    ) {
        let is_prompt_end = computed_tokens >= input_tokens && !slots.hits_taken;
        if computed_tokens < slots.next_tokens && !is_prompt_end {
            return;
        }
        let slot_tokens = self.profile.slot_tokens();
        let slot_blocks = self.profile.connector.slot_blocks as usize;
        let full = ((computed_tokens / slot_tokens) as usize).min(slots.keys.len());
        slots.next_tokens = (full as u64 + 1) * slot_tokens;
        let from = slots.offloaded;
        slots.offloaded = from.max(full);
        let (mut fills, mut stored, mut held) = (Vec::new(), Vec::new(), Vec::new());
        if from < full {
            // Blocks that are being stored are not free: they are a quarter of all at most.
            let has_room = self.loading == Loading::Whole
                || self.held_blocks < (self.profile.gpu_blocks / 4).max(1) as usize;
            if let Some(why) = slots.refused {
                self.directory.leave_out(&slots.keys[from..full], why);
            } else if !has_room {
                slots.offloaded = from;
            } else {
                let left = self.evictions_per_request_max.saturating_sub(slots.evicted);
                let reservation = match &self.remote {
                    None => self.directory.begin_offload_if_worth(&slots.keys[..full], from, left),
                    // What L1 does not store never reaches L2.
                    Some(_) => self.directory.begin_offload(&slots.keys[..full], from, left),
                };
                slots.evicted += reservation.evicted.len();
                self.tiers.evicted_slots += reservation.evicted.len() as u64;
                slots.refused = reservation.refused.map(|(_, why)| why).filter(|why| why.is_final());
                if let Some((refused, why)) = reservation.refused
                    && !why.is_final()
                {
                    slots.offloaded = refused;
                }
                slots.hits.extend(&reservation.hits);
                for of in &reservation.reserved {
                    fills.push((of.slot, of.fill));
                    stored.push((slots.keys[of.index], slots.contents[of.index]));
                    held.extend_from_slice(&blocks[of.index * slot_blocks..(of.index + 1) * slot_blocks]);
                }
            }
        }
        let mut hits = Vec::new();
        if computed_tokens >= input_tokens {
            slots.hits_taken = true;
            hits = slots.hits.drain(..).map(|position| slots.keys[position]).collect();
        }
        if fills.is_empty() {
            self.directory.touch(&hits);
            return;
        }
        let bytes = fills.len() as u64 * self.profile.slot_bytes();
        moves.store_bytes += bytes;
        self.tiers.stored_bytes += bytes;
        held.iter().for_each(|block| pool.hold(*block));
        self.held_blocks += held.len();
        moves.stores.push(Store { end_ns: 0, fills, slots: stored, held, hits });
    }

    /// A request has ended with so many tokens computed.
    pub(crate) fn end_request(&mut self, slots: &RequestSlots, computed_tokens: u64) {
        let full = ((computed_tokens / self.profile.slot_tokens()) as usize).min(slots.keys.len());
        self.tiers.not_stored_slots += full.saturating_sub(slots.offloaded) as u64;
    }

    /// How long the step takes that computes for `forward_ns` and moves this.
    ///
    /// Layer by layer the link and the device are two machines that every layer passes through, each layer as long as
    /// the others: the last one ends after the first load, the longer of both for each further layer, and the last
    /// computation.
    pub(crate) fn step_ns(&self, forward_ns: f64, moves: &StepMoves) -> f64 {
        let cpu_ns = from_us(self.profile.connector.step_us + moves.cpu_us);
        let load_ns = self.load_ns(moves.load_bytes);
        match self.loading {
            Loading::Whole => {
                cpu_ns + moves.fetch_ns as f64 + load_ns + forward_ns + self.store_ns(moves.store_bytes)
            }
            Loading::Layers => {
                let layers = f64::from(self.profile.layers);
                let (load, compute) = (load_ns / layers, forward_ns / layers);
                cpu_ns + load + (layers - 1.0) * load.max(compute) + compute
            }
        }
    }

    /// The step began computing at `began_ns` and has ended; its layers took `layer_ns` each.
    pub(crate) fn end_step(
        &mut self,
        moves: StepMoves,
        began_ns: u64,
        layer_ns: f64,
        now_ns: u64,
        pool: &mut BlockPool,
    ) {
        self.directory.end_load(&moves.pinned);
        for mut store in moves.stores {
            if self.loading == Loading::Whole {
                pool.release(&store.held);
                self.held_blocks -= store.held.len();
                self.finish_store(&store);
                continue;
            }
            let bytes = store.fills.len() as u64 * self.profile.slot_bytes();
            let copy_us = self.profile.host_link.copy_us;
            // The first layer is copied when it has been computed, the last one after the step.
            let moved_ns = self.from_device.transfer(
                began_ns + whole_ns(layer_ns),
                bytes,
                copy_us * f64::from(self.profile.layers),
            );
            let last_ns = whole_ns(self.store_ns(bytes) / f64::from(self.profile.layers));
            store.end_ns = moved_ns.max(now_ns + last_ns);
            self.stores.push_back(store);
        }
    }

    fn finish_store(&mut self, store: &Store) {
        let ready = self.directory.complete_fills(&store.fills, true);
        for (slot, (key, content)) in store.fills.iter().map(|(slot, _)| slot).zip(&store.slots) {
            if ready.contains(slot) {
                self.fetched.remove(content);
                if let Some(remote) = &mut self.remote {
                    remote.offer(*key, *content);
                }
            }
        }
        self.directory.touch(&store.hits);
    }

    fn load_ns(&self, bytes: u64) -> f64 {
        self.copy_ns(bytes, self.profile.host_link.to_device_gb_s)
    }

    fn store_ns(&self, bytes: u64) -> f64 {
        self.copy_ns(bytes, self.profile.host_link.from_device_gb_s)
    }

    fn copy_ns(&self, bytes: u64, gb_per_s: f64) -> f64 {
        if bytes == 0 {
            return 0.0;
        }
        from_us(self.profile.host_link.copy_us) * f64::from(self.profile.layers)
            + ns_per_byte(gb_per_s) * bytes as f64
    }

    /// What went where.
    pub(crate) fn tiers(&self) -> Tiers {
        let stats = self.directory.stats();
        let slot_bytes = self.profile.slot_bytes();
        let remote = self.remote.as_ref();
        Tiers {
            not_stored_slots: self.tiers.not_stored_slots
                + stats.refused
                + stats.over_share
                + stats.not_worth,
            fetched_bytes: remote.map_or(0, |remote| remote.fetched_slots * slot_bytes),
            demoted_bytes: remote.map_or(0, |remote| remote.demoted_slots * slot_bytes),
            ..self.tiers
        }
    }

    /// Verifies every invariant; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert_eq!(self.directory.check(), Ok(()));
        assert_eq!(self.held_blocks, self.stores.iter().map(|store| store.held.len()).sum::<usize>());
    }

    /// Nothing is on its way; for tests.
    #[cfg(test)]
    pub(crate) fn check_at_rest(&self) {
        let stats = self.directory.stats();
        assert_eq!((self.held_blocks, stats.filling, stats.draining, stats.pinned), (0, 0, 0, 0));
        assert_eq!(stats.free + stats.ready, self.profile.l1_slots() as usize);
        assert_eq!(self.next_ns(), None);
    }
}

/// A key for a content, spread like the hash that it would be.
fn key(content: ContentId) -> BlockKey {
    let mut key = [0; BlockKey::BYTES];
    key[..8].copy_from_slice(&xxh3_64(&content.to_le_bytes()).to_le_bytes());
    key[8..12].copy_from_slice(&content.to_le_bytes());
    BlockKey(key)
}
