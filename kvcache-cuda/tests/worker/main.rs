//! The connector's whole worker on the fake device: the Store, the copy engine, pinned slots, and an engine whose layers
//! are work in a stream that runs behind the CPU, sometimes by several steps.
//!
//! What the fake checks is how a worker on a GPU goes wrong: blocks that are read before they are loaded, overwritten while an
//! older step still reads them, or offloaded before they are computed; slots that are loaded before their bytes are there.

mod buggy;
mod world;

use buggy::Bug;
use world::{Outcome, run};

/// Seeds of a test run. Each takes some milliseconds.
const SEEDS: u64 = 400;

fn failure(seed: u64, bug: Option<Bug>) -> Option<String> {
    let Outcome { violations, wrong, .. } = run(seed, bug);
    violations.into_iter().chain(wrong).next()
}

#[test]
fn nothing_is_read_before_it_is_there_or_overwritten_before_it_was_read() {
    let mut sum = Outcome::default();
    for seed in 0..SEEDS {
        let outcome = run(seed, None);
        assert_eq!((outcome.violations, outcome.wrong), (Vec::new(), Vec::new()), "seed {seed}");
        sum.loads += outcome.loads;
        sum.offloads += outcome.offloads;
        sum.load_errors += outcome.load_errors;
        sum.graphs += outcome.graphs;
        sum.behind += outcome.behind;
        sum.reused += outcome.reused;
        sum.shared += outcome.shared;
    }
    // What was not reached was not tested.
    assert!(sum.loads > 2000 && sum.offloads > 2000, "{sum:?}");
    assert!(sum.load_errors > 20 && sum.graphs > 500, "{sum:?}");
    assert!(sum.shared > 500, "jobs of a step share batches: {sum:?}");
    assert!(sum.behind > 500, "steps began while earlier ones were computed: {sum:?}");
    assert!(sum.reused > 500, "blocks were loaded into that the step before had used: {sum:?}");
}

#[test]
fn runs_are_reproducible() {
    for seed in 0..5 {
        assert_eq!(run(seed, None), run(seed, None));
    }
}

/// The negative control: a worker that forgets one thing is found out.
#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        let found = (0..SEEDS).find_map(|seed| failure(seed, Some(bug)));
        assert!(found.is_some(), "{bug:?} is not found");
    }
}
