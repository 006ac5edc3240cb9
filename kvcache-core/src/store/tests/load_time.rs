//! What the planner makes of the loads of a host's copy engine.

use super::*;
use crate::copy_engine::{HostCopyConfig, HostCopyEngine};
use crate::directory::GroupKind;
use crate::eviction::Lru;
use crate::fingerprint::Namespace;
use crate::planner::{GroupConfig, KeySource, LoadMode, Lookup, Planner, PlannerConfig, RequestOptions};

const BLOCK_TOKENS: usize = 64;
const STEP: Duration = Duration::from_millis(30);

fn planner() -> Planner {
    let config = PlannerConfig {
        namespace: Namespace::of_text("test"),
        groups: vec![GroupConfig { kind: GroupKind::Full, block_tokens: BLOCK_TOKENS }],
        slot_blocks: 1,
        hash_tokens: BLOCK_TOKENS,
        key_source: KeySource::Engine,
        ranks: 1,
        null_block: 0,
        load_mode: LoadMode::Auto,
        min_load_tokens: 0,
        fill_wait: Duration::ZERO,
        startup_wait: Duration::ZERO,
        store_on_sight: 1,
        prompt_only: false,
        keep_hashes: false,
    };
    Planner::new(config, Box::new(|slots| Box::new(Lru::new(slots))))
}

fn add(planner: &mut Planner, id: &str) {
    planner.add_request(id, RequestOptions::default());
    planner.extend_hashes(id, [b"the only block".as_slice()].into_iter());
}

fn report(store: &mut Store, planner: &mut Planner) {
    planner.absorb(&store.take_report().expect("something to say"));
}

/// A load of 96 bytes, layer by layer in a step of 30 ms: its end is seen when the step is over. By the clock it takes as long as the
/// step, which is too long for 64 tokens of 512 (so none is loaded any more), and too long to be within a step of 64.
#[test]
fn a_short_load_costs_what_its_copies_take_and_not_the_step_around_them() {
    for step_tokens in [512, 64] {
        let mut rank = rank();
        let copies = HostCopyEngine::new(HostCopyConfig { threads: 0, ..HostCopyConfig::default() }).unwrap();
        let config = StoreConfig { copy_threads: 1, ..StoreConfig::default() };
        let layout = rank.store.layout().clone();
        rank.store = Store::new(config, layout, Arc::clone(&rank.memory) as _, Arc::new(copies));
        let (store, mut planner) = (&mut rank.store, planner());
        report(store, &mut planner);

        add(&mut planner, "first");
        planner.offload("first", BLOCK_TOKENS, &[vec![1]]);
        store.begin_step(planner.take_plan(0, Duration::ZERO).unwrap(), None);
        store.finish_copies(None);
        report(store, &mut planner);

        for step in 1..8 {
            let (id, now) = (format!("load {step}"), STEP * step);
            add(&mut planner, &id);
            let answer = planner.lookup(&id, 0, BLOCK_TOKENS + step_tokens, now);
            let expected = Lookup::Hit { tokens: BLOCK_TOKENS, asynchronous: false };
            assert_eq!(answer, expected, "step {step} of {step_tokens} tokens");
            planner.commit_load(&id, BLOCK_TOKENS, &[vec![3]]);
            store.begin_step(planner.take_plan(step_tokens, now).unwrap(), None);
            store.start_loads();
            for layer in 0..LAYERS {
                store.wait_layer(layer, None);
                std::thread::sleep(STEP / LAYERS as u32);
            }
            store.end_step(None);
            report(store, &mut planner);
            planner.finish(&id);
        }
        let stats = store.stats();
        assert_eq!((stats.loads, stats.failed_loads), (7, 0));
        assert!(
            Duration::from_nanos(stats.load_ns) > 7 * STEP,
            "as documented: from their start to their end"
        );
    }
}
