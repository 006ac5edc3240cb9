//! The engine: how time passes, what comes, and what is counted of it.

mod schedule;

use std::collections::VecDeque;

use kvcache_core::eviction::PolicyRegistry;

use crate::arrivals::Arrivals;
use crate::block_pool::{BlockIndex, BlockPool, ContentId};
use crate::connector::{Connector, RequestSlots};
use crate::error::Error;
use crate::histogram::Histogram;
use crate::outcome::{HitTokens, Outcome, Served, Summary};
use crate::profile::Profile;
use crate::remote::Remote;
use crate::setup::Setup;
use crate::time::{from_us, seconds, whole_ns};
use crate::traffic::Traffic;

/// What can be chosen beside profile, set-up and traffic.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Eviction policy of L1. L2 has the default one.
    pub policy: String,
    /// The run ends at this time, whatever is left. Without it, it ends when every request has.
    pub horizon_s: Option<f64>,
    /// Of so many requests, the first of the traffic, no time and no hit is counted: they fill the caches.
    pub warm_up_requests: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { policy: PolicyRegistry::DEFAULT.to_owned(), horizon_s: None, warm_up_requests: 0 }
    }
}

/// How far a run has come.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Progress {
    /// Requests that have ended.
    pub ended: u64,
    /// Requests of the traffic.
    pub requests: u64,
    /// Simulated time.
    pub time_s: f64,
}

/// An engine that serves traffic once.
pub struct Simulation<'a> {
    profile: &'a Profile,
    setup: Setup,
    traffic: &'a Traffic,
    horizon_ns: u64,
    warm_up_requests: usize,
    arrivals: Arrivals<'a>,
    pool: BlockPool,
    connector: Option<Connector<'a>>,
    now_ns: u64,
    /// By request, while it waits or runs.
    live: Vec<Option<Box<Live>>>,
    /// Requests, first come first.
    waiting: VecDeque<usize>,
    /// Requests, first admitted first.
    running: Vec<usize>,
    /// By request, the first of the contents that are its own: of blocks that nobody asks for again.
    own_contents: Vec<ContentId>,
    counted: Counted,
}

/// A request that waits or runs.
struct Live {
    arrived_ns: u64,
    input_tokens: u64,
    output_tokens: u64,
    /// Prompt and what has been answered.
    total_tokens: u64,
    computed_tokens: u64,
    contents: Vec<ContentId>,
    blocks: Vec<BlockIndex>,
    slots: RequestSlots,
    was_admitted: bool,
    first_token_ns: Option<u64>,
    last_token_ns: u64,
}

impl Live {
    fn answered_tokens(&self) -> u64 {
        self.total_tokens - self.input_tokens
    }
}

struct Counted {
    served: Served,
    first_arrival_ns: Option<u64>,
    last_end_ns: u64,
    ttft_ns: Vec<u64>,
    tpot_ns: Vec<u64>,
    e2e_ns: Vec<u64>,
    itl: Histogram,
    output_tokens: u64,
    completed_tokens: u64,
    input_tokens: u64,
    hit_tokens: HitTokens,
    preemptions: u64,
    queue_depth_max: usize,
    blocks_used_max: u32,
    steps: u64,
}

impl Counted {
    fn new() -> Self {
        Self {
            served: Served::default(),
            first_arrival_ns: None,
            last_end_ns: 0,
            ttft_ns: Vec::new(),
            tpot_ns: Vec::new(),
            e2e_ns: Vec::new(),
            itl: Histogram::new(),
            output_tokens: 0,
            completed_tokens: 0,
            input_tokens: 0,
            hit_tokens: HitTokens::default(),
            preemptions: 0,
            queue_depth_max: 0,
            blocks_used_max: 0,
            steps: 0,
        }
    }
}

impl<'a> Simulation<'a> {
    /// An engine that has served nothing yet. Memory: some bytes for each request and block of the traffic and each
    /// block and slot of the profile.
    ///
    /// # Errors
    ///
    /// If the profile is impossible, lacks what the set-up needs, or does not fit the traffic; if the traffic has
    /// no times; or if the policy is unknown.
    pub fn new(
        profile: &'a Profile,
        setup: Setup,
        traffic: &'a Traffic,
        options: &Options,
    ) -> Result<Self, Error> {
        profile.check()?;
        if traffic.block_tokens() != u64::from(profile.block_tokens) {
            return Err(Error::BlockTokens {
                traffic: traffic.block_tokens(),
                engine: profile.block_tokens.into(),
                profile: profile.name.clone(),
            });
        }
        let (own_contents, content_count) = own_contents(traffic, profile)?;
        let connector = connector(profile, setup, options)?;
        Ok(Self {
            profile,
            setup,
            traffic,
            horizon_ns: options.horizon_s.map_or(u64::MAX, |horizon_s| whole_ns(horizon_s * 1e9)),
            warm_up_requests: options.warm_up_requests,
            arrivals: Arrivals::new(traffic)?,
            pool: BlockPool::new(profile.gpu_blocks, content_count, setup.prefix_cache),
            connector,
            now_ns: 0,
            live: std::iter::repeat_with(|| None).take(traffic.request_count()).collect(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            own_contents,
            counted: Counted::new(),
        })
    }

    /// Serves the traffic. `on_progress` is called every thousand steps.
    ///
    /// # Errors
    ///
    /// None at present; what is impossible is found by [`new`](Self::new).
    pub fn run(mut self, on_progress: &mut dyn FnMut(Progress)) -> Result<Outcome, Error> {
        while self.now_ns < self.horizon_ns {
            if !self.advance() {
                break;
            }
            if self.counted.steps % 1000 == 999 {
                on_progress(self.progress());
            }
        }
        Ok(self.outcome())
    }

    fn progress(&self) -> Progress {
        Progress {
            ended: self.counted.served.completed + self.counted.served.refused,
            requests: self.traffic.request_count() as u64,
            time_s: seconds(self.now_ns),
        }
    }

    /// One step, or if there is nothing to compute, time until something happens; false if nothing will.
    pub(crate) fn advance(&mut self) -> bool {
        if let Some(connector) = &mut self.connector {
            connector.advance(self.now_ns, &mut self.pool);
        }
        self.take_arrivals();
        self.call_for_fetches();
        self.counted.queue_depth_max = self.counted.queue_depth_max.max(self.waiting.len());
        let step = self.schedule();
        if step.scheduled.is_empty() {
            let Some(next_ns) = self.next_ns() else { return false };
            self.now_ns = next_ns.min(self.horizon_ns);
            return true;
        }
        self.counted.steps += 1;
        self.counted.blocks_used_max =
            self.counted.blocks_used_max.max(self.profile.gpu_blocks - self.pool.free_count());
        let forward_ns = self.profile.compute.forward_ns(&step.batch);
        let began_ns = self.now_ns;
        let step_ns = match &self.connector {
            Some(connector) => connector.step_ns(forward_ns, &step.moves),
            None => forward_ns,
        };
        // A step of no time would never end.
        self.now_ns += whole_ns(from_us(self.profile.compute.step_us) + step_ns).max(1);
        if let Some(connector) = &mut self.connector {
            let layer_ns = forward_ns / f64::from(self.profile.layers);
            connector.end_step(step.moves, began_ns, layer_ns, self.now_ns, &mut self.pool);
        }
        for (request, tokens) in step.scheduled {
            self.end_chunk(request, tokens);
        }
        true
    }

    /// When something happens though nothing is computed.
    fn next_ns(&self) -> Option<u64> {
        let waits = self.waiting.iter().filter_map(|request| self.live[*request].as_ref());
        let waits = waits.map(|live| live.slots.wait_until_ns()).filter(|until_ns| *until_ns > self.now_ns);
        let connector = self.connector.as_ref().and_then(Connector::next_ns);
        let next_ns = waits.chain(connector).chain(self.arrivals.next_ns()).min()?;
        Some(next_ns.max(self.now_ns + 1))
    }

    /// Sends for what found no room before.
    fn call_for_fetches(&mut self) {
        let (compute, step_tokens_max) = (self.profile.compute, self.profile.step_tokens_max);
        let alone_ns = |tokens: u64| compute.prefill_ns(tokens, step_tokens_max);
        let Some(connector) = &mut self.connector else { return };
        while let Some(request) = connector.call() {
            let Some(live) = &mut self.live[request] else { unreachable!("what waits is live") };
            connector.send_for(&mut live.slots, live.total_tokens, &alone_ns, self.now_ns);
        }
    }

    fn take_arrivals(&mut self) {
        while let Some((arrived_ns, request)) = self.arrivals.arrived(self.now_ns) {
            self.counted.first_arrival_ns.get_or_insert(arrived_ns);
            let of = &self.traffic.requests()[request];
            if of.input_tokens + of.output_tokens > self.profile.request_tokens_max() {
                self.counted.served.refused += 1;
                self.arrivals.note_end(request, self.now_ns);
                continue;
            }
            let full = full_blocks(of.input_tokens, of.output_tokens, self.profile.block_tokens);
            let mut contents = of.contents().to_vec();
            contents
                .extend((self.own_contents[request]..).take((full as usize).saturating_sub(contents.len())));
            let (compute, step_tokens_max) = (self.profile.compute, self.profile.step_tokens_max);
            let alone_ns = |tokens: u64| compute.prefill_ns(tokens, step_tokens_max);
            let mut slots = RequestSlots::default();
            if let Some(connector) = &mut self.connector {
                slots = connector.request(request, &contents);
                connector.send_for(&mut slots, of.input_tokens, &alone_ns, self.now_ns);
            }
            self.live[request] = Some(Box::new(Live {
                arrived_ns,
                input_tokens: of.input_tokens,
                output_tokens: of.output_tokens,
                total_tokens: of.input_tokens,
                computed_tokens: 0,
                contents,
                blocks: Vec::new(),
                slots,
                was_admitted: false,
                first_token_ns: None,
                last_token_ns: 0,
            }));
            self.waiting.push_back(request);
        }
    }

    /// A step that computed `tokens` tokens of a request has ended.
    fn end_chunk(&mut self, request: usize, tokens: u64) {
        let Some(live) = &mut self.live[request] else { unreachable!("what was scheduled is live") };
        live.computed_tokens += tokens;
        if live.computed_tokens < live.total_tokens {
            return;
        }
        live.total_tokens += 1;
        self.counted.output_tokens += 1;
        let is_counted = request >= self.warm_up_requests;
        match live.first_token_ns {
            None => {
                live.first_token_ns = Some(self.now_ns);
                self.counted.ttft_ns.extend(is_counted.then_some(self.now_ns - live.arrived_ns));
            }
            Some(_) if is_counted => self.counted.itl.add(self.now_ns - live.last_token_ns),
            Some(_) => {}
        }
        live.last_token_ns = self.now_ns;
        if live.answered_tokens() == live.output_tokens {
            self.finish(request);
        }
    }

    fn finish(&mut self, request: usize) {
        let Some(live) = self.live[request].take() else { unreachable!("what ends is live") };
        self.pool.release(&live.blocks);
        if let Some(connector) = &mut self.connector {
            connector.end_request(&live.slots, live.computed_tokens);
        }
        self.running.retain(|of| *of != request);
        self.counted.served.completed += 1;
        self.counted.completed_tokens += live.input_tokens + live.output_tokens;
        self.counted.last_end_ns = self.now_ns;
        if request >= self.warm_up_requests {
            self.counted.e2e_ns.push(self.now_ns - live.arrived_ns);
            let first_ns = live.first_token_ns.unwrap_or(self.now_ns);
            if let Some(gaps) = live.output_tokens.checked_sub(1).filter(|gaps| *gaps > 0) {
                self.counted.tpot_ns.push((self.now_ns - first_ns) / gaps);
            }
        }
        self.arrivals.note_end(request, self.now_ns);
    }

    fn outcome(self) -> Outcome {
        let counted = self.counted;
        let requests = self.traffic.request_count() as u64;
        let mut served = Served { requests, ..counted.served };
        served.unfinished = self.live.iter().flatten().count() as u64;
        served.not_arrived = requests - served.completed - served.refused - served.unfinished;
        let first_ns = counted.first_arrival_ns.unwrap_or(0);
        let end_ns =
            if served.unfinished + served.not_arrived > 0 { self.now_ns } else { counted.last_end_ns };
        let duration_s = seconds(end_ns.saturating_sub(first_ns));
        let per_s = |count: u64| if duration_s > 0.0 { count as f64 / duration_s } else { 0.0 };
        let offered_per_s = self.traffic.offered_per_s();
        let served_per_s = per_s(served.completed);
        Outcome {
            setup: self.setup,
            served,
            duration_s,
            offered_per_s,
            served_per_s,
            kept_up: offered_per_s.map(|offered_per_s| served_per_s >= KEPT_UP * offered_per_s),
            ttft_s: Summary::of(counted.ttft_ns),
            tpot_s: Summary::of(counted.tpot_ns),
            itl_s: Summary::of_histogram(&counted.itl),
            e2e_s: Summary::of(counted.e2e_ns),
            output_tokens_per_s: per_s(counted.output_tokens),
            total_tokens_per_s: per_s(counted.completed_tokens),
            input_tokens: counted.input_tokens,
            hit_tokens: counted.hit_tokens,
            preemptions: counted.preemptions,
            queue_depth_max: counted.queue_depth_max,
            blocks_used_max: counted.blocks_used_max,
            steps: counted.steps,
            tiers: self.connector.map(|connector| connector.tiers()),
        }
    }

    /// Verifies every invariant; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        self.pool.check();
        if let Some(connector) = &self.connector {
            connector.check();
        }
        let live = self.waiting.iter().chain(&self.running).count();
        assert_eq!(live, self.live.iter().flatten().count(), "every live request waits or runs");
        for request in &self.running {
            let of = self.live[*request].as_ref().expect("live");
            assert!(of.blocks.len() as u64 * u64::from(self.profile.block_tokens) >= of.computed_tokens);
            assert!(of.computed_tokens < of.total_tokens);
        }
        assert!(self.running.len() <= self.profile.sequences_max as usize);
    }

    /// Nothing is left of what was served but what is remembered; for tests.
    #[cfg(test)]
    pub(crate) fn check_at_rest(&self) {
        self.check();
        assert!(self.waiting.is_empty() && self.running.is_empty());
        assert_eq!(self.pool.free_count(), self.profile.gpu_blocks);
        if let Some(connector) = &self.connector {
            connector.check_at_rest();
        }
    }

    #[cfg(test)]
    pub(crate) fn end(self) -> Outcome {
        self.outcome()
    }
}

/// Where answers are served this much slower than requests come, they do not keep up.
const KEPT_UP: f64 = 0.9;

/// Blocks that a request fills. The last token of an answer is sampled and never computed.
fn full_blocks(input_tokens: u64, output_tokens: u64, block_tokens: u32) -> u64 {
    (input_tokens + output_tokens - 1) / u64::from(block_tokens)
}

/// Numbers for the blocks whose contents nobody else has: by request the first of them; and how many contents there
/// are.
fn own_contents(traffic: &Traffic, profile: &Profile) -> Result<(Vec<ContentId>, u32), Error> {
    let mut next = u64::from(traffic.block_count());
    let mut firsts = Vec::with_capacity(traffic.request_count());
    for of in traffic.requests() {
        firsts.push(next as ContentId);
        if of.input_tokens + of.output_tokens <= profile.request_tokens_max() {
            let full = full_blocks(of.input_tokens, of.output_tokens, profile.block_tokens);
            next += full.saturating_sub(of.contents().len() as u64);
        }
        if next >= CONTENTS_MAX {
            return Err(Error::TooMuch { what: "blocks of answers", most: CONTENTS_MAX });
        }
    }
    Ok((firsts, next as u32))
}

const CONTENTS_MAX: u64 = u32::MAX as u64 - 1;

fn connector<'a>(
    profile: &'a Profile,
    setup: Setup,
    options: &Options,
) -> Result<Option<Connector<'a>>, Error> {
    // As a planner has it.
    let registry = PolicyRegistry::for_planner(setup.l2);
    let policy = registry.build(&options.policy, profile.l1_slots())?;
    let Some(loading) = setup.connector else { return Ok(None) };
    if profile.l1_slots() == 0 {
        return Err(Error::NoL1 { setup: setup.to_string(), profile: profile.name.clone() });
    }
    let remote = match (setup.l2, profile.l2) {
        (false, _) => None,
        (true, None) => return Err(Error::NoL2 { setup: setup.to_string(), profile: profile.name.clone() }),
        (true, Some(l2)) => {
            let policy = PolicyRegistry::with_builtin().build(PolicyRegistry::DEFAULT, profile.l2_slots())?;
            Some(Remote::new(profile, l2, policy))
        }
    };
    Ok(Some(Connector::new(profile, loading, policy, remote)))
}
