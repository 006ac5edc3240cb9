//! Each mechanism against times that were worked out by hand.
//!
//! The tiny engine: blocks of 10 tokens, steps of at most 100 tokens that take 1,000 us, each prompt token 10 us,
//! answers 500 us and 100 us each. A block has 10,000 bytes, which take 10 us on every link.

use std::num::NonZeroU64;

use kvcache_workload::{Blocks, Content, Piece, Request};

use crate::cost::ComputeCost;
use crate::error::Error;
use crate::outcome::{HitTokens, Outcome};
use crate::profile::{ConnectorCost, HostLink, L2, Profile};
use crate::simulation::{Options, Simulation};
use crate::traffic::Traffic;

pub(crate) fn tiny_profile() -> Profile {
    Profile {
        name: "tiny".to_owned(),
        block_tokens: 10,
        kv_bytes_per_token: 1000,
        layers: 4,
        gpu_blocks: 100,
        step_tokens_max: 100,
        sequences_max: 8,
        chunked_prefill: true,
        compute: ComputeCost {
            step_us: 1000.0,
            prefill_us: 0.0,
            prefill_token_us: 10.0,
            prefill_context_ns: 0.0,
            decode_us: 500.0,
            decode_sequence_us: 100.0,
            decode_context_ns: 0.0,
        },
        host_link: HostLink { to_device_gb_s: 1.0, from_device_gb_s: 1.0, copy_us: 0.0 },
        connector: ConnectorCost::default(),
        l1_blocks: 1000,
        l2: Some(L2 { blocks: 1000, get_gb_s: 1.0, put_gb_s: 1.0, latency_us: 0.0, slot_us: 0.0 }),
        origins: std::collections::BTreeMap::new(),
    }
}

/// A request of `pieces` (stream, tokens) at a time.
pub(crate) fn request(time_us: u64, pieces: &[(u64, u64)], output_tokens: u64) -> Request {
    let pieces = pieces.iter().map(|(stream, tokens)| Piece { stream: *stream, tokens: *tokens }).collect();
    let mut request = Request::new(Content::Pieces(pieces));
    request.timestamp_ms = Some(time_us as f64 / 1000.0);
    request.output_tokens = Some(output_tokens);
    request
}

pub(crate) fn traffic(profile: &Profile, requests: &[Request]) -> Traffic {
    let block_tokens = NonZeroU64::new(profile.block_tokens.into()).expect("not zero");
    let mut traffic = Traffic::new(Blocks::new(block_tokens), 1);
    requests.iter().for_each(|request| traffic.push(request).expect("good"));
    traffic
}

fn run(profile: &Profile, setup: &str, requests: &[Request]) -> Outcome {
    // A plain list, so that what leaves is easily said.
    run_with("lru", profile, setup, requests)
}

fn run_with(policy: &str, profile: &Profile, setup: &str, requests: &[Request]) -> Outcome {
    let traffic = traffic(profile, requests);
    let setup = setup.parse().expect("a set-up");
    let options = Options { policy: policy.to_owned(), ..Options::default() };
    let mut simulation = Simulation::new(profile, setup, &traffic, &options).expect("possible");
    while simulation.advance() {
        simulation.check();
    }
    simulation.end()
}

/// Microseconds to the first token of the request that took longest, and to its last token.
fn slowest_us(outcome: &Outcome) -> (f64, f64) {
    let us = |seconds: f64| (seconds * 1e9).round() / 1e3;
    (us(outcome.ttft_s.max), us(outcome.e2e_s.max))
}

#[test]
fn one_request_alone() {
    let outcome = run(&tiny_profile(), "none", &[request(5000, &[(1, 50)], 3)]);
    assert_eq!(slowest_us(&outcome), (1000.0 + 500.0, 1500.0 + 2.0 * 1600.0));
    assert_eq!((outcome.tpot_s.mean, outcome.itl_s.count), (0.0016, 2));
    assert_eq!((outcome.served.completed, outcome.steps, outcome.blocks_used_max), (1, 3, 6));
    assert_eq!((outcome.duration_s, outcome.queue_depth_max), (0.0047, 1));
}

#[test]
fn two_requests_share_steps() {
    let outcome = run(&tiny_profile(), "none", &[request(0, &[(1, 50)], 2), request(0, &[(2, 30)], 2)]);
    assert_eq!(slowest_us(&outcome), (1000.0 + 800.0, 1800.0 + 1000.0 + 500.0 + 200.0));
    assert_eq!((outcome.steps, outcome.ttft_s.p50), (2, 0.0018));
}

#[test]
fn a_long_prompt_is_computed_in_chunks() {
    let outcome = run(&tiny_profile(), "none", &[request(0, &[(1, 250)], 1)]);
    assert_eq!(slowest_us(&outcome).0, 2000.0 + 2000.0 + 1500.0);
    let mut whole = tiny_profile();
    whole.chunked_prefill = false;
    let outcome = run(&whole, "none", &[request(0, &[(1, 250)], 1), request(0, &[(1, 99)], 1)]);
    assert_eq!((outcome.served.refused, outcome.served.completed), (1, 1));
}

#[test]
fn answers_come_before_prompts_in_a_step() {
    // The first one has its first token at 1,500; its second one is in a step with 99 tokens of the other's 110, its
    // third one with the other 11.
    let outcome = run(&tiny_profile(), "none", &[request(0, &[(1, 50)], 3), request(100, &[(2, 110)], 1)]);
    let second = 1500.0 + 1000.0 + 990.0 + 500.0 + 100.0;
    let third = second + 1000.0 + 110.0 + 500.0 + 100.0;
    assert_eq!(slowest_us(&outcome), (third - 100.0, third));
    assert_eq!(outcome.steps, 3);
}

#[test]
fn a_prompt_that_the_engine_remembers_costs_its_tail() {
    let requests = [request(0, &[(1, 100)], 1), request(10_000, &[(1, 95), (2, 5)], 1)];
    let remembered = run(&tiny_profile(), "prefix", &requests);
    assert_eq!(remembered.hit_tokens, HitTokens { device: 90, l1: 0, l2: 0 });
    assert_eq!((remembered.ttft_s.p50, remembered.ttft_s.max), (0.0011, 0.002));
    assert_eq!(run(&tiny_profile(), "none", &requests).hit_tokens, HitTokens::default());
    // Of a prompt that is there as a whole, one token is computed, and with it its block.
    let outcome =
        run(&tiny_profile(), "prefix", &[request(0, &[(1, 100)], 1), request(10_000, &[(1, 100)], 1)]);
    assert_eq!(outcome.hit_tokens.device, 90);
}

#[test]
fn prompts_that_come_together_share_what_is_computed() {
    let outcome =
        run(&tiny_profile(), "prefix", &[request(0, &[(1, 60)], 1), request(0, &[(1, 60), (2, 10)], 1)]);
    assert_eq!((outcome.hit_tokens.device, outcome.steps), (60, 1));
    assert_eq!(slowest_us(&outcome).0, 1000.0 + 600.0 + 100.0);
}

#[test]
fn the_last_one_loses_its_blocks_and_computes_them_again() {
    // Two sequences of 70 tokens, and room for 100. Both have 50 tokens after ten steps of answers; the first one
    // then takes the last block of the second, and another one ten steps later.
    let mut profile = tiny_profile();
    profile.gpu_blocks = 10;
    let requests = [request(0, &[(1, 40)], 30), request(0, &[(2, 40)], 30)];
    let first_ends = 1800.0 + 10.0 * 1700.0 + 19.0 * 1600.0;
    let again = |computed: f64| first_ends + 1000.0 + computed * 10.0 + 18.0 * 1600.0;
    let remembered = run(&profile, "prefix", &requests);
    assert_eq!((remembered.preemptions, remembered.served.completed), (1, 2));
    assert_eq!(slowest_us(&remembered).1, again(51.0 - 30.0));
    assert_eq!(remembered.hit_tokens, HitTokens::default(), "what is computed twice is no hit");
    let forgotten = run(&profile, "none", &requests);
    assert_eq!((forgotten.preemptions, slowest_us(&forgotten).1), (1, again(51.0)));
    assert_eq!(remembered.blocks_used_max, 10);
}

#[test]
fn who_lost_its_blocks_is_the_next_to_be_admitted() {
    // As above, and a third one that would fit as soon as the second has lost its blocks: it has come later.
    let mut profile = tiny_profile();
    profile.gpu_blocks = 10;
    let requests = [request(0, &[(1, 40)], 30), request(0, &[(2, 40)], 30), request(5000, &[(3, 40)], 1)];
    let first_ends = 1800.0 + 10.0 * 1700.0 + 19.0 * 1600.0;
    let outcome = run(&profile, "prefix", &requests);
    assert_eq!(slowest_us(&outcome).0, first_ends + 1000.0 + (21.0 + 40.0) * 10.0 - 5000.0);
}

#[test]
fn what_is_hit_stays_longer_in_l1() {
    let (mut profile, mut requests) = forgotten();
    profile.l1_blocks = 44;
    // The first prompt comes again with something new behind it; its slots are then younger than those of the second,
    // seven of which leave for the last of the others.
    requests.truncate(2);
    requests.push(request(20_000, &[(1, 100), (7, 10)], 1));
    requests.extend([3, 4, 5].map(|stream| request(20_000 + stream * 3000, &[(stream, 110)], 1)));
    requests.push(request(50_000, &[(1, 100)], 1));
    let hits = run(&profile, "layers", &requests).hit_tokens;
    assert_eq!(hits.device + hits.l1, 100 + 90);
}

#[test]
fn what_can_never_run_is_refused_and_counted() {
    let mut profile = tiny_profile();
    profile.gpu_blocks = 10;
    let requests = [request(0, &[(1, 99)], 2), request(0, &[(1, 99)], 1), request(7, &[(2, 500)], 1)];
    let outcome = run(&profile, "prefix", &requests);
    assert_eq!((outcome.served.refused, outcome.served.completed, outcome.served.unfinished), (2, 1, 0));
    assert_eq!(outcome.ttft_s.count, 1);
}

/// A prompt that the engine has forgotten but for its first block: another one took the other blocks.
fn forgotten() -> (Profile, Vec<Request>) {
    let mut profile = tiny_profile();
    profile.gpu_blocks = 12;
    let requests =
        vec![request(0, &[(1, 100)], 1), request(10_000, &[(2, 110)], 1), request(20_000, &[(1, 100)], 1)];
    (profile, requests)
}

/// Time to the first token of the request that came last, alone with what came before it.
fn last_ttft_us(profile: &Profile, setup: &str, requests: &[Request]) -> f64 {
    let all = run(profile, setup, requests).ttft_s;
    let others = run(profile, setup, &requests[..requests.len() - 1]).ttft_s;
    ((all.mean * all.count as f64 - others.mean * others.count as f64) * 1e9).round() / 1e3
}

#[test]
fn a_load_layer_by_layer_hides_behind_computing() {
    let (mut profile, requests) = forgotten();
    // 80,000 bytes are 20 us a layer, and 10 tokens 25 us a layer: all but the first load is hidden.
    assert_eq!(last_ttft_us(&profile, "layers", &requests), 1000.0 + 20.0 + 3.0 * 25.0 + 25.0);
    assert_eq!(last_ttft_us(&profile, "whole", &requests), 1000.0 + 80.0 + 100.0);
    assert_eq!(last_ttft_us(&profile, "prefix", &requests), 1000.0 + 900.0);
    let outcome = run(&profile, "layers", &requests);
    assert_eq!(outcome.hit_tokens, HitTokens { device: 10, l1: 80, l2: 0 });
    assert_eq!(outcome.tiers.expect("a connector").loaded_bytes, 80_000);
    // A link of a fifth: 100 us a layer, and computing is hidden but for the last layer.
    profile.host_link.to_device_gb_s = 0.2;
    assert_eq!(last_ttft_us(&profile, "layers", &requests), 1000.0 + 100.0 + 3.0 * 100.0 + 25.0);
    profile.host_link.copy_us = 5.0;
    assert_eq!(last_ttft_us(&profile, "layers", &requests), 1000.0 + 105.0 + 3.0 * 105.0 + 25.0);
    assert_eq!(last_ttft_us(&profile, "whole", &requests), 1000.0 + 420.0 + 100.0);
}

#[test]
fn a_load_that_is_twice_as_slow_as_computing_is_not_done() {
    let (mut profile, requests) = forgotten();
    // 80 tokens take 1,800 us to compute, a step of their own included.
    profile.host_link.to_device_gb_s = 80_000.0 / 3_700_000.0;
    assert_eq!(run(&profile, "layers", &requests).hit_tokens.l1, 0);
    assert_eq!(run(&profile, "whole", &requests).hit_tokens.l1, 80, "it does not ask");
    profile.host_link.to_device_gb_s = 80_000.0 / 3_500_000.0;
    assert_eq!(run(&profile, "layers", &requests).hit_tokens.l1, 80);
}

#[test]
fn a_store_is_behind_the_step_or_in_it() {
    let (mut profile, requests) = forgotten();
    profile.connector = ConnectorCost { step_us: 3.0, request_us: 20.0, block_us: 2.0, slot_blocks: 1 };
    let cpu = 3.0 + 20.0 + 2.0 * 10.0;
    assert_eq!(last_ttft_us(&profile, "layers", &requests[..1]), 1000.0 + 1000.0 + cpu);
    assert_eq!(last_ttft_us(&profile, "whole", &requests[..1]), 1000.0 + 1000.0 + cpu + 100.0);
    assert_eq!(run(&profile, "layers", &requests[..1]).tiers.expect("a connector").stored_bytes, 100_000);
}

#[test]
fn blocks_that_are_being_stored_are_not_used_for_others() {
    // The link needs 10 ms a block, and the engine's blocks are all held when the second prompt comes: it waits for
    // the store of the first, which began when the first layer was computed.
    let mut profile = tiny_profile();
    (profile.gpu_blocks, profile.host_link.from_device_gb_s) = (10, 0.001);
    let requests = [request(0, &[(1, 99)], 1), request(3000, &[(2, 60)], 1)];
    let stored = 990.0 / 4.0 + 90_000.0;
    assert_eq!(slowest_us(&run(&profile, "layers", &requests)).0, stored - 3000.0 + 1600.0);
    assert_eq!(slowest_us(&run(&profile, "prefix", &requests)).0, 1990.0);
    // A second step has something to store as well, and too much is held: it is given up and counted.
    let outcome = run(&profile, "layers", &[request(0, &[(1, 89)], 10)]);
    assert_eq!(outcome.tiers.map(|tiers| (tiers.stored_bytes, tiers.not_stored_slots)), Some((80_000, 1)));
}

/// A prompt that the engine and L1 have forgotten, and L2 has.
fn only_in_l2() -> (Profile, Vec<Request>) {
    let (mut profile, mut requests) = forgotten();
    // Each of the others stores ten blocks: its last one comes while those are on their way, and of the engine's
    // twelve no more than a quarter may be held beside them. The last one's ten take the place of the first one's.
    profile.l1_blocks = 40;
    let others = [3, 4, 5, 6].map(|stream| request(10_000 + stream * 3000, &[(stream, 110)], 1));
    requests.splice(1..2, others);
    requests.last_mut().expect("not empty").timestamp_ms = Some(50.0);
    (profile, requests)
}

/// Of the step that loads 90 tokens, 22.5 us a layer, and computes ten, 25 us a layer.
const LOAD_90_US: f64 = 1000.0 + 22.5 + 3.0 * 25.0 + 25.0;

#[test]
fn what_only_l2_has_is_waited_for() {
    let (mut profile, requests) = only_in_l2();
    let outcome = run(&profile, "layers+l2", &requests);
    assert_eq!(outcome.hit_tokens, HitTokens { device: 0, l1: 0, l2: 90 });
    assert_eq!(outcome.tiers.expect("a connector").fetched_bytes, 90_000);
    // Nine slots of 10 us come before their load. Where nothing overlaps, the tenth slot is stored within the step.
    assert_eq!(last_ttft_us(&profile, "layers+l2", &requests), 90.0 + LOAD_90_US);
    assert_eq!(last_ttft_us(&profile, "whole+l2", &requests), 1000.0 + 90.0 + 90.0 + 100.0 + 10.0);
    assert_eq!(last_ttft_us(&profile, "layers", &requests), 1000.0 + 1000.0);
    if let Some(l2) = &mut profile.l2 {
        (l2.latency_us, l2.slot_us) = (200.0, 4.0);
    }
    assert_eq!(last_ttft_us(&profile, "layers+l2", &requests), 200.0 + 9.0 * 14.0 + LOAD_90_US);
}

#[test]
fn a_fetch_hides_behind_the_queue() {
    let (mut profile, mut requests) = only_in_l2();
    if let Some(l2) = &mut profile.l2 {
        l2.get_gb_s = 0.05;
    }
    let long = request(49_000, &[(9, 100)], 1);
    requests.insert(requests.len() - 1, long);
    requests.last_mut().expect("not empty").timestamp_ms = Some(49.0);
    // Nine slots of 200 us are on their way while the long prompt has the step of 2,000 us to itself, and 25 us
    // more its blocks, until the last layer is stored. Without L2 the whole prompt follows.
    assert_eq!(last_ttft_us(&profile, "layers+l2", &requests), 2025.0 + LOAD_90_US);
    assert_eq!(last_ttft_us(&profile, "layers", &requests), 2025.0 + 1000.0 + 1000.0);
}

#[test]
fn a_fetch_that_takes_too_long_is_not_waited_for() {
    let (mut profile, requests) = only_in_l2();
    let l2_ttft = |profile: &Profile| last_ttft_us(profile, "layers+l2", &requests);
    let late =
        |profile: &Profile| run(profile, "layers+l2", &requests).tiers.expect("a connector").late_requests;
    // Computing the 90 tokens takes 1,900 us. Nine slots of 300 us take longer than 1.25 times that, so it waits for
    // 1,900 us, when six of nine are there, loads them, 15 us a layer, and computes 40 tokens, 100 us a layer.
    profile.l2.as_mut().expect("has one").get_gb_s = 10_000.0 / 300_000.0;
    let loaded = 1000.0 + 15.0 + 3.0 * 100.0 + 100.0;
    assert_eq!((late(&profile), l2_ttft(&profile)), (1, 1900.0 + loaded));
    // And what would take twice as long as computing is not fetched at all.
    profile.l2.as_mut().expect("has one").get_gb_s = 10_000.0 / 430_000.0;
    assert_eq!((late(&profile), l2_ttft(&profile)), (0, 1000.0 + 1000.0));
}

/// Two prompts that only L2 has whole come while another one is computed, and all nine slots that may be fetched are for
/// the first. When that is admitted, the second one is sent for.
#[test]
fn a_fetch_that_finds_no_room_begins_when_there_is_some() {
    let (mut profile, mut requests) = only_in_l2();
    profile.l2.as_mut().expect("has one").get_gb_s = 0.05;
    let long = request(49_000, &[(9, 100)], 1);
    requests.insert(requests.len() - 1, long);
    requests.last_mut().expect("not empty").timestamp_ms = Some(49.0);
    requests.push(request(49_000, &[(3, 110)], 1));
    profile.l1_blocks = 36;
    let tiers = run(&profile, "layers+l2", &requests).tiers.expect("a connector");
    assert_eq!((tiers.refused_fetches, tiers.fetched_bytes), (1, 180_000));
    // Where it is its turn at once, it does not wait for room.
    let at = requests.len() - 3;
    requests.remove(at);
    let tiers = run(&profile, "layers+l2", &requests).tiers.expect("a connector");
    assert_eq!((tiers.refused_fetches, tiers.fetched_bytes), (1, 90_000));
}

/// So long a queue that L1 does not hold all of it: what has come stays until its request is admitted.
#[test]
fn what_has_been_fetched_is_loaded_however_long_the_queue() {
    let mut profile = tiny_profile();
    (profile.gpu_blocks, profile.l1_blocks) = (12, 60);
    // Twenty prompts, which L2 remembers, and all of them at once again.
    let first = (1..=20).map(|stream| request(stream * 3000, &[(stream, 100)], 1));
    let again = (1..=20).map(|stream| request(100_000, &[(stream, 100)], 1));
    let requests: Vec<Request> = first.chain(again).collect();
    for policy in ["lru", "s3fifo"] {
        let outcome = run_with(policy, &profile, "layers+l2", &requests);
        let fetched = outcome.tiers.expect("a connector").fetched_bytes;
        let loaded = outcome.hit_tokens.l2 * profile.kv_bytes_per_token;
        // The rest was sent for when its request's turn had come, or is the tail of what L1 or the engine had lost since.
        assert!(
            fetched > 1_000_000 && loaded * 3 > fetched * 2,
            "{policy}: {loaded} of {fetched} were of use"
        );
    }
}

/// A prompt that is used twice, and then ten others: S3-FIFO keeps what was used again.
#[test]
fn what_is_hit_is_touched_in_l1() {
    let mut profile = tiny_profile();
    (profile.gpu_blocks, profile.l1_blocks) = (12, 60);
    let mut requests = vec![request(0, &[(1, 100)], 1), request(3000, &[(2, 110)], 1)];
    requests.push(request(6000, &[(1, 100), (7, 10)], 1));
    requests.extend((10..20).map(|stream| request(stream * 3000, &[(stream, 110)], 1)));
    requests.push(request(100_000, &[(1, 100)], 1));
    let hits = |requests: &[Request]| run_with("s3fifo", &profile, "layers", requests).hit_tokens.l1;
    assert_eq!(hits(&requests) - hits(&requests[..requests.len() - 1]), 90);
}

/// The same of L2: what is fetched from there stays longer.
#[test]
fn what_is_fetched_is_touched_in_l2() {
    let mut profile = tiny_profile();
    (profile.gpu_blocks, profile.l1_blocks) = (12, 40);
    profile.l2.as_mut().expect("has one").blocks = 60;
    let mut requests = vec![request(0, &[(1, 100)], 1)];
    requests.extend((2..6).map(|stream| request(stream * 3000, &[(stream, 110)], 1)));
    requests.push(request(20_000, &[(1, 100)], 1));
    requests.extend((10..20).map(|stream| request(stream * 3000, &[(stream, 110)], 1)));
    requests.push(request(100_000, &[(1, 100)], 1));
    let hits = |requests: &[Request]| run(&profile, "layers+l2", requests).hit_tokens.l2;
    assert_eq!((hits(&requests[..6]), hits(&requests)), (90, 180));
}

#[test]
fn slots_of_several_blocks_are_hit_as_a_whole() {
    let (mut profile, requests) = forgotten();
    profile.connector.slot_blocks = 4;
    // Two slots are 80 tokens, of which the engine has ten.
    let outcome = run(&profile, "layers", &requests);
    assert_eq!(outcome.hit_tokens, HitTokens { device: 10, l1: 70, l2: 0 });
    assert_eq!(outcome.tiers.expect("a connector").stored_bytes, (2 + 2) * 40_000);
}

#[test]
fn the_answer_is_remembered_for_the_next_turn() {
    let turn = |time_us, pieces: &[(u64, u64)], number| {
        let mut request = request(time_us, pieces, 21);
        (request.session_id, request.turn) = (Some("a".to_owned()), Some(number));
        request
    };
    let requests = [turn(0, &[(1, 50)], 0), turn(1000, &[(1, 50), (2, 21), (3, 9)], 1)];
    let outcome = run(&tiny_profile(), "prefix", &requests);
    assert_eq!(outcome.hit_tokens.device, 70);
    // It arrives when the first turn has ended, though its time was before.
    let first = 1500.0 + 20.0 * 1600.0;
    assert_eq!(outcome.duration_s, (first + 1100.0 + 20.0 * 1600.0) / 1e6);
}

#[test]
fn what_warms_the_caches_is_not_counted() {
    let (profile, requests) = forgotten();
    let traffic = traffic(&profile, &requests);
    let options = Options { warm_up_requests: 2, ..Options::default() };
    let setup = "layers".parse().expect("a set-up");
    let simulation = Simulation::new(&profile, setup, &traffic, &options).expect("possible");
    let outcome = simulation.run(&mut |_| {}).expect("runs");
    assert_eq!((outcome.served.completed, outcome.ttft_s.count, outcome.e2e_s.count), (3, 1, 1));
    assert_eq!((outcome.ttft_s.max, outcome.input_tokens), (0.00112, 100));
    assert_eq!(outcome.hit_tokens, HitTokens { device: 10, l1: 80, l2: 0 });
}

#[test]
fn a_run_ends_at_its_horizon_and_says_so() {
    let profile = tiny_profile();
    let requests: Vec<Request> = (0..100).map(|index| request(index * 100, &[(index, 90)], 10)).collect();
    let traffic = traffic(&profile, &requests);
    let options = Options { horizon_s: Some(0.05), ..Options::default() };
    let setup = "none".parse().expect("a set-up");
    let outcome = Simulation::new(&profile, setup, &traffic, &options)
        .expect("possible")
        .run(&mut |_| {})
        .expect("runs");
    assert!(outcome.served.unfinished > 0 && outcome.served.completed > 0, "{:?}", outcome.served);
    assert_eq!((outcome.kept_up, outcome.served.not_arrived), (Some(false), 0));
    let late = [request(0, &[(1, 90)], 1), request(1_000_000, &[(2, 90)], 1)];
    let late = super::tests::traffic(&profile, &late);
    let early =
        Simulation::new(&profile, setup, &late, &options).expect("possible").run(&mut |_| {}).expect("runs");
    assert_eq!((early.served.completed, early.served.not_arrived, early.duration_s), (1, 1, 0.05));
    assert!((0.05..0.06).contains(&outcome.duration_s));
    assert_eq!(outcome.offered_per_s.map(f64::round), Some(10_000.0));
}

#[test]
fn what_a_set_up_needs_has_to_be_there() {
    let (mut profile, requests) = forgotten();
    let traffic = traffic(&profile, &requests);
    profile.l2 = None;
    let new = |profile: &Profile, setup: &str, options: &Options| {
        Simulation::new(profile, setup.parse().expect("a set-up"), &traffic, options)
            .err()
            .map(|error| error.to_string())
    };
    let default = Options::default();
    let error = new(&profile, "layers+l2", &default).expect("refused");
    assert!(error.contains("set-up `layers+l2` needs an L2, and profile `tiny` has none"), "{error}");
    assert_eq!(new(&profile, "layers", &default), None);
    profile.l1_blocks = 0;
    let error = new(&profile, "layers", &default).expect("refused");
    assert!(error.contains("needs an L1, and profile `tiny` has l1_blocks 0"), "{error}");
    let error =
        new(&profile, "none", &Options { policy: "lr".to_owned(), ..default.clone() }).expect("refused");
    assert!(error.contains("`lr`"), "{error}");
    profile.block_tokens = 16;
    let error = new(&profile, "none", &default).expect("refused");
    assert!(error.contains("blocks of 10 tokens and profile `tiny` of 16"), "{error}");
    let mut untimed = requests;
    untimed[1].timestamp_ms = None;
    profile.block_tokens = 10;
    let untimed = super::tests::traffic(&profile, &untimed);
    let error = Simulation::new(&profile, "none".parse().expect("a set-up"), &untimed, &default).err();
    assert_eq!(error, Some(Error::NoTimes { request: 1 }));
}
