//! What a run is like: sizes, settings and how often which fault happens, all from the seed.

use kvcache_core::planner::{Ingestion, LoadMode};

use super::fakes::fake_copies::CopyBehaviour;
use super::fakes::fake_ring::RingBehaviour;
use super::fakes::random::{Random, mix};

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) operations: usize,
    pub(crate) ranks: usize,
    /// All ranks hold the same, and share the slab of the first.
    pub(crate) replicas: bool,
    /// Slots of each rank's slab.
    pub(crate) slots: Vec<u32>,
    /// One KV cache group each; the window of a sliding one.
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) layers: usize,
    pub(crate) segments: usize,
    pub(crate) block_tokens: usize,
    pub(crate) slot_blocks: usize,
    pub(crate) engine_blocks: usize,
    pub(crate) documents: usize,
    pub(crate) tokens_max: usize,
    pub(crate) requests_max: usize,
    pub(crate) running_max: usize,
    pub(crate) step_tokens: usize,
    pub(crate) local_cache: bool,
    /// The scheduler runs a step ahead.
    pub(crate) ahead: bool,
    /// Layer hooks fire; else the whole load is waited for before the forward pass.
    pub(crate) hooks: bool,
    pub(crate) keys_from_tokens: bool,
    pub(crate) load_mode: LoadMode,
    pub(crate) min_load_tokens: usize,
    pub(crate) fill_wait_ms: u64,
    pub(crate) startup_wait_ms: u64,
    pub(crate) store_on_sight: u8,
    pub(crate) prompt_only: bool,
    pub(crate) keep_hashes: bool,
    pub(crate) policy: &'static str,
    pub(crate) copy_threads: u32,
    pub(crate) copies: CopyBehaviour,
    /// Copies done beside each rank's step: a slow rank does few.
    pub(crate) pieces_a_step: Vec<usize>,
    /// The slabs are pinned for a device, which takes its time.
    pub(crate) slow_pinning: bool,
    // Per thousand operations.
    pub(crate) abort: u32,
    pub(crate) reset: u32,
    pub(crate) crash: u32,
    pub(crate) damage: u32,
    pub(crate) grow: u32,
    pub(crate) bad_blocks: u32,
    pub(crate) lost_hooks: u32,
    pub(crate) report_delay: u32,
    /// There is an L2, and how it is used.
    pub(crate) remote: Option<Ingestion>,
    pub(crate) ring: RingBehaviour,
    pub(crate) remote_patience_ms: u64,
    pub(crate) fetch_wait_ms: u64,
    pub(crate) fetch_job_slots: usize,
    pub(crate) demoting_max: usize,
    pub(crate) remote_in_flight_max: usize,
    // Per thousand operations.
    pub(crate) servers_change: u32,
    pub(crate) members_change: u32,
    pub(crate) servers_lose: u32,
}

impl Scenario {
    /// The engine's stream, where its memory is a device's.
    pub(super) fn stream(&self) -> Option<u64> {
        self.copies.streams.then_some(1)
    }

    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(mix(seed ^ 0xabcd));
        let r = &mut random;
        let ranks = r.between(1, 3);
        let slots = r.between(6, 32) as u32;
        let windows = match r.below(4) {
            0 => vec![None, Some(r.between(2, 14))],
            _ => vec![None],
        };
        let slot_blocks = r.between(1, 2);
        let tokens_max = r.between(12, 56);
        let block_tokens = 4;
        let blocks = windows.len() * (tokens_max / block_tokens + 2);
        let slots_of_document = (tokens_max / (block_tokens * slot_blocks)).max(1);
        let often = |r: &mut Random, most: u32| if r.chance(600) { r.below(most as usize) as u32 } else { 0 };
        Self {
            operations: 200,
            ranks,
            replicas: r.chance(300),
            slots: (0..ranks).map(|_| slots + r.below(3) as u32).collect(),
            layers: windows.len() * r.between(1, 2),
            segments: r.between(1, 2),
            block_tokens,
            slot_blocks,
            // Twice the longest request, so that requests fit while jobs hold the blocks of another.
            engine_blocks: 1 + 2 * blocks + r.below(2 * blocks),
            documents: 2 * slots as usize / slots_of_document + 1,
            tokens_max,
            requests_max: r.between(2, 8),
            running_max: r.between(1, 4),
            step_tokens: r.between(4, 40),
            local_cache: windows.len() == 1 && r.chance(500),
            ahead: r.chance(500),
            hooks: r.chance(700),
            keys_from_tokens: r.chance(300),
            load_mode: [LoadMode::Auto, LoadMode::Layerwise, LoadMode::Async][r.below(3)],
            min_load_tokens: if r.chance(800) { 0 } else { r.below(16) },
            fill_wait_ms: r.below(12) as u64,
            startup_wait_ms: r.below(20) as u64,
            store_on_sight: if r.chance(800) { 1 } else { 2 },
            prompt_only: r.chance(200),
            keep_hashes: r.chance(300),
            policy: ["lru", "s3fifo", "hit-density"][r.below(3)],
            copy_threads: r.below(2) as u32,
            copies: CopyBehaviour {
                batches_max: r.between(1, 24),
                fail: often(r, 80),
                refuse: often(r, 200),
                lazy: often(r, 900),
                streams: r.chance(300),
                lazy_streams: false,
                refuses_order: r.chance(100),
                batch_bytes: if r.chance(700) { 0 } else { r.below(200) },
                pinned_offloads: false,
                halves: false,
                expected_byte_ns: None,
            },
            pieces_a_step: (0..ranks).map(|_| [0, 2, 8, 64][r.below(4)]).collect(),
            abort: often(r, 60),
            reset: often(r, 20),
            crash: often(r, 20),
            damage: often(r, 100),
            grow: often(r, 200),
            bad_blocks: often(r, 40),
            lost_hooks: often(r, 40),
            report_delay: often(r, 500),
            windows,
            remote: [None, Some(Ingestion::All), Some(Ingestion::Hot), Some(Ingestion::Evicted)][r.below(4)],
            ring: RingBehaviour {
                delay_max: r.below(10),
                lose: often(r, 100),
                break_off: often(r, 100),
                repeat: often(r, 100),
                corrupt: often(r, 200),
                forget: often(r, 200),
                refuse: often(r, 100),
                replicas: r.between(1, 2),
                ..RingBehaviour::default()
            },
            remote_patience_ms: r.between(5, 60) as u64,
            fetch_wait_ms: r.below(40) as u64,
            fetch_job_slots: r.between(1, 4),
            demoting_max: r.between(1, 16),
            remote_in_flight_max: r.between(1, 8),
            servers_change: often(r, 60),
            members_change: often(r, 30),
            servers_lose: often(r, 30),
            slow_pinning: r.chance(300),
        }
    }

    /// The scenario in which a planted bug is looked for: rare circumstances are made common.
    pub(crate) fn with(seed: u64, bug: Option<Bug>) -> Self {
        let usual = Self::of(seed);
        match bug {
            Some(Bug::KeepVoid) => Self {
                ranks: 2,
                replicas: true,
                slots: vec![usual.slots[0]; 2],
                pieces_a_step: vec![64; 2],
                crash: 60,
                report_delay: 500,
                copies: CopyBehaviour { fail: 100, ..usual.copies },
                ..usual
            },
            Some(Bug::TrustRemoteBytes) => Self {
                remote: Some(Ingestion::All),
                ring: RingBehaviour { corrupt: 200, ..usual.ring },
                fetch_wait_ms: 40,
                ..usual
            },
            Some(Bug::ShareAfterReset) => {
                // One shard, so that names differ by nothing but what a reset changes.
                let (slots, pieces_a_step) = (vec![usual.slots[0]], vec![64]);
                let (remote, fetch_wait_ms) = (Some(Ingestion::All), 40);
                Self {
                    ranks: 1,
                    replicas: false,
                    slots,
                    pieces_a_step,
                    remote,
                    reset: 20,
                    fetch_wait_ms,
                    ..usual
                }
            }
            Some(Bug::WriteLate) => Self {
                remote: Some(Ingestion::All),
                ring: RingBehaviour { delay_max: 9, lose: 200, ..usual.ring },
                remote_patience_ms: 5,
                fetch_wait_ms: 40,
                ..usual
            },
            Some(Bug::LoseShares) => Self {
                running_max: 4,
                copies: CopyBehaviour { batch_bytes: 200, halves: true, ..usual.copies },
                ..usual
            },
            Some(Bug::LoseRemoteEnds) => Self { remote: Some(Ingestion::All), fetch_wait_ms: 40, ..usual },
            _ => usual,
        }
    }

    /// Which rank's bytes this one holds.
    pub(crate) fn shard(&self, rank: usize) -> usize {
        if self.replicas { 0 } else { rank }
    }

    /// The first engine block that a token at `position` still sees in `group`.
    pub(crate) fn first_block(&self, group: usize, position: usize) -> usize {
        match self.windows[group] {
            None => 0,
            Some(window) => position.saturating_sub(window - 1) / self.block_tokens,
        }
    }
}

/// Mistakes planted on the test's side of the boundary, to show that the simulation sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// Loads are reported as ended when they begin, so that nothing is pinned while it is read.
    SkipPin,
    /// The policy's victims may be pinned.
    EvictPinned,
    /// Slots are labelled ready before their bytes are there, and a restart believes it.
    PublishEarly,
    /// Offloads are reported as ended when they begin, so that a slot is served while it fills.
    ServeFilling,
    /// Labels are not checked before a load.
    TrustAnyLabel,
    /// A restart finds blocks from before a reset.
    ForgetEpoch,
    /// The engine reuses blocks that an offload still reads.
    IgnoreHolds,
    /// Load errors do not reach the scheduler.
    SwallowErrors,
    /// Some ends of jobs are never reported.
    LoseEnds,
    /// Some held blocks are never let go.
    DropRelease,
    /// A request that waits is never let go.
    WaitForEver,
    /// The policy's memory of evicted keys has no bound.
    EndlessGhosts,
    /// Every step has a plan.
    EmptyPlans,
    /// A replica leaves alone what it knows to be worthless, and its owner publishes it.
    KeepVoid,
    /// What comes from L2 damaged is not noticed.
    TrustRemoteBytes,
    /// Values stored before a reset keep their names.
    ShareAfterReset,
    /// Some transfers to and from L2 never end.
    LoseRemoteEnds,
    /// What comes too late from L2 is written into memory that is somebody else's by then.
    WriteLate,
    /// Of jobs that share a batch only the first ones are copied.
    LoseShares,
}

macro_rules! counts {
    ($($name:ident),* $(,)?) => {
        /// What happened; summed over all runs, every count must be above zero.
        #[derive(Clone, Copy, Default, Debug)]
        pub(crate) struct Counts { $(pub(crate) $name: u64),* }

        impl Counts {
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            pub(crate) fn missing(&self) -> Vec<&'static str> {
                let mut missing = Vec::new();
                $(if self.$name == 0 { missing.push(stringify!($name)); })*
                missing
            }
        }
    };
}

counts!(
    operations,
    requests,
    finished,
    loads,
    loaded_tokens,
    async_loads,
    offloads,
    stored,
    evicted,
    refused,
    over_share,
    not_worth,
    adopted,
    waits,
    declined,
    pages_checked,
    aborts,
    preemptions,
    rolled_back,
    resets,
    resets_with_jobs,
    crashes,
    crashes_while_copying,
    damaged,
    grown,
    loads_before_pinned,
    bad_blocks,
    lost_hooks,
    lost_store_hooks,
    load_errors,
    failed_async_loads,
    copy_failures,
    copies_full,
    shared_batches,
    overtaken,
    delayed_reports,
    repeated_reports,
    replica_loads,
    spoiled_by_another,
    remote_asked,
    remote_fetched,
    remote_failed_fetches,
    remote_cancelled,
    remote_refused,
    remote_hit_tokens,
    remote_demoted,
    remote_already_there,
    remote_failed_demotions,
    remote_gets,
    remote_puts,
    remote_missing,
    remote_corrupt,
    remote_lost,
    remote_repeated,
    remote_broken,
    remote_refused_connections,
    remote_abandoned,
    remote_unfit,
    servers_changed,
    members_changed,
);
