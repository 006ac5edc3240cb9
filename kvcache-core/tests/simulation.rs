//! Planner and stores against a model engine, with faults, on a fake clock: every run is decided by its seed.
//!
//! A failing seed prints the command that replays it. `KVCACHE_SIM_SEED` runs one seed, `KVCACHE_SIM_SEEDS` sets how
//! many are run.

#[path = "simulation/fake_copies.rs"]
mod fake_copies;
#[path = "simulation/fake_memory.rs"]
mod fake_memory;
#[path = "simulation/random.rs"]
mod random;
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
        let mut world = World::new(seed, Scenario::of(seed), bug);
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
    let seeds = number_in("KVCACHE_SIM_SEEDS").unwrap_or(10_000);
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
    ] {
        is_found(bug);
    }
}
