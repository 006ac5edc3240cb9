//! Planner and stores against a model engine, with faults, on a fake clock: every run is decided by its seed.
//!
//! A failing seed prints the command that replays it. `KVCACHE_SIM_SEED` runs one seed, `KVCACHE_SIM_SEEDS` sets how
//! many are run, `KVCACHE_SIM_TRACE` prints what happens.

#[path = "simulation/fakes.rs"]
mod fakes;
#[path = "simulation/scenario.rs"]
mod scenario;
#[path = "simulation/world.rs"]
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use scenario::{Bug, Counts, Scenario};
use world::World;

/// Runs one seed; what was broken, if anything was.
fn run(seed: u64, bug: Option<Bug>) -> Result<Counts, String> {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, Scenario::with(seed, bug), bug);
        let result = world.run();
        (result, world.counts)
    }));
    match result {
        Ok((Ok(()), counts)) => Ok(counts),
        Ok((Err(violation), _)) => Err(violation),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "panicked".into())),
    }
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// What DESIGN says must always hold, under every kind of fault; see `world.rs` for what is checked where.
#[test]
fn nothing_breaks_over_many_seeds() {
    if let Some(seed) = number_in("KVCACHE_SIM_SEED") {
        println!("{:#?}", Scenario::of(seed));
        println!("{:#?}", run(seed, None).unwrap_or_else(|violation| panic!("{violation}")));
        return;
    }
    let seeds = number_in("KVCACHE_SIM_SEEDS").unwrap_or(20_000);
    let next = AtomicU64::new(0);
    let total = Mutex::new(Counts::default());
    let failure = Mutex::new(None::<(u64, String)>);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let mut counts = Counts::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    match run(seed, None) {
                        Ok(more) => counts.add(&more),
                        Err(violation) => {
                            next.store(seeds, Ordering::Relaxed);
                            let mut failure = failure.lock().unwrap();
                            if failure.as_ref().is_none_or(|(first, _)| seed < *first) {
                                *failure = Some((seed, violation));
                            }
                        }
                    }
                }
                total.lock().unwrap().add(&counts);
            });
        }
    });
    if let Some((seed, violation)) = failure.into_inner().unwrap() {
        panic!(
            "seed {seed}: {violation}\nreplay: KVCACHE_SIM_SEED={seed} cargo test -p kvcache-core --test simulation \
             nothing_breaks_over_many_seeds -- --nocapture"
        );
    }
    let total = total.into_inner().unwrap();
    println!("{seeds} seeds: {total:#?}");
    assert_eq!(total.missing(), Vec::<&str>::new(), "these never happened");
}

fn is_found(bug: Bug) {
    for seed in 0..1000 {
        if let Err(violation) = run(seed, Some(bug)) {
            println!("{bug:?} found at seed {seed}: {violation}");
            return;
        }
    }
    panic!("{bug:?} was not found in 1000 seeds");
}

/// One planted mistake per invariant, each found within a thousand seeds.
#[test]
fn planted_bugs_are_found() {
    use Bug::*;
    for bug in [
        SkipPin,
        EvictPinned,
        PublishEarly,
        ServeFilling,
        TrustAnyLabel,
        ForgetEpoch,
        IgnoreHolds,
        SwallowErrors,
        LoseEnds,
        DropRelease,
        WaitForEver,
        EndlessGhosts,
        EmptyPlans,
        KeepVoid,
        TrustRemoteBytes,
        ShareAfterReset,
        LoseRemoteEnds,
        WriteLate,
        LoseShares,
    ] {
        is_found(bug);
    }
}

/// Each of eight requests wants 60 % of L1, all at once, so that they evict each other all the time; twice.
#[test]
fn requests_that_each_want_sixty_percent_of_l1_all_terminate() {
    let mut total = Counts::default();
    for seed in 0..50 {
        let scenario = Scenario {
            operations: 0,
            ranks: 2,
            replicas: false,
            slots: vec![20; 2],
            pieces_a_step: vec![8; 2],
            windows: vec![None],
            layers: 2,
            slot_blocks: 1,
            engine_blocks: 60,
            requests_max: 8,
            running_max: 4,
            min_load_tokens: 0,
            store_on_sight: 1,
            prompt_only: false,
            ..Scenario::of(seed)
        };
        let mut world = World::new(seed, scenario, None);
        for request in 0..16u32 {
            let tokens: Vec<u32> = (0..49).map(|token| request % 8 * 1000 + token).collect();
            world.add(tokens, 49, kvcache_core::planner::RequestOptions::default());
        }
        world.run().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert_eq!(world.counts.finished, 16);
        total.add(&world.counts);
    }
    assert!(total.evicted > 100 && total.refused > 100 && total.finished == 800, "{total:?}");
}
