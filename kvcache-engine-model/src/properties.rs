//! What holds for every profile, set-up and traffic.

use kvcache_workload::Request;
use proptest::prelude::*;

use crate::outcome::Outcome;
use crate::profile::Profile;
use crate::setup::Setup;
use crate::simulation::{Options, Simulation};
use crate::tests::{request, tiny_profile, traffic};
use crate::traffic::Traffic;

fn profiles() -> impl Strategy<Value = Profile> {
    let engine = (8u32..40, 20u64..200, 1u32..6, any::<bool>(), 1u32..4);
    let tiers = (4u32..60, 4u32..200, 0.001..2.0f64, 0.001..2.0f64, 0.0..300.0f64);
    (engine, tiers).prop_map(
        |((gpu_blocks, step, sequences, chunked, slot_blocks), (l1, l2, link, ring, us))| {
            let mut profile = tiny_profile();
            (profile.gpu_blocks, profile.step_tokens_max, profile.sequences_max) =
                (gpu_blocks, step, sequences);
            (profile.chunked_prefill, profile.l1_blocks, profile.connector.slot_blocks) =
                (chunked, l1, slot_blocks);
            (profile.host_link.to_device_gb_s, profile.host_link.from_device_gb_s) = (link, link * 0.7);
            if let Some(of) = &mut profile.l2 {
                (of.blocks, of.get_gb_s, of.put_gb_s, of.latency_us) = (l2, ring, ring * 0.8, us);
            }
            profile
        },
    )
}

/// Requests that share heads; some are turns of sessions.
fn requests() -> impl Strategy<Value = Vec<Request>> {
    let one = (0u64..4000, 0u64..4, 0u64..150, 0u64..80, 1u64..30, 0u64..6);
    proptest::collection::vec(one, 1..25).prop_map(|of| {
        let mut time_us = 0;
        let each =
            of.into_iter().enumerate().map(|(index, (gap_us, stream, head, tail, output, session))| {
                time_us += gap_us;
                let mut request = request(time_us, &[(stream, head), (100 + index as u64, tail)], output);
                request.session_id = (session < 3).then(|| session.to_string());
                request
            });
        each.collect()
    })
}

fn checked(profile: &Profile, setup: Setup, traffic: &Traffic) -> Outcome {
    let mut simulation = Simulation::new(profile, setup, traffic, &Options::default()).expect("possible");
    while simulation.advance() {
        simulation.check();
    }
    simulation.check_at_rest();
    simulation.end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every request ends exactly once, with the tokens that were asked for, and nothing is kept of it but memories.
    #[test]
    fn what_comes_ends(
        profile in profiles(), requests in requests(), setup in 0usize..Setup::ALL.len(), closed in 0u64..4,
    ) {
        let mut traffic = traffic(&profile, &requests);
        traffic.serve_at_a_time((closed > 0).then_some(closed));
        let outcome = checked(&profile, Setup::ALL[setup], &traffic);
        let fits = |request: &&Request| {
            let input = request.content.input_tokens().unwrap_or(0).max(1);
            input + request.output_tokens.unwrap_or(0) <= profile.request_tokens_max()
        };
        let served: Vec<&Request> = requests.iter().filter(fits).collect();
        prop_assert_eq!(outcome.served.completed, served.len() as u64);
        prop_assert_eq!(outcome.served.completed + outcome.served.refused, requests.len() as u64);
        prop_assert_eq!((outcome.served.unfinished, outcome.served.not_arrived), (0, 0));
        prop_assert_eq!(outcome.ttft_s.count, served.len() as u64);
        let output: u64 = served.iter().filter_map(|request| request.output_tokens).sum();
        prop_assert_eq!(outcome.itl_s.count, output - served.len() as u64);
        let hits = outcome.hit_tokens;
        prop_assert!(hits.device + hits.l1 + hits.l2 <= outcome.input_tokens);
        prop_assert!(outcome.blocks_used_max <= profile.gpu_blocks);
        prop_assert!(outcome.ttft_s.max <= outcome.e2e_s.max);
    }

    #[test]
    fn the_same_is_the_same_to_the_byte(
        profile in profiles(), requests in requests(), setup in 0usize..Setup::ALL.len(),
    ) {
        let traffic = traffic(&profile, &requests);
        let json = |outcome: &Outcome| serde_json::to_string(outcome).expect("a value");
        let first = checked(&profile, Setup::ALL[setup], &traffic);
        prop_assert_eq!(json(&first), json(&checked(&profile, Setup::ALL[setup], &traffic)));
    }

    /// Where the same is loaded, a faster link makes no request wait longer. (Where a connector decides that loading is
    /// not worth it, a link that is a little too slow can be better than one that is just fast enough.)
    #[test]
    fn a_faster_link_is_no_worse_for_one_request_at_a_time(
        link in 0.001..2.0f64, faster in 1.0..100.0f64, head in 20u64..90, tail in 1u64..60, layers in any::<bool>(),
    ) {
        let mut profile = tiny_profile();
        profile.gpu_blocks = 16;
        let setup = Setup::ALL[if layers { 3 } else { 2 }];
        let prompt = |stream| vec![(1, head), (stream, tail)];
        let requests = [(0, prompt(2)), (1_000_000, vec![(9, 150)]), (2_000_000, prompt(3))];
        let requests = requests.map(|(time_us, pieces)| request(time_us, &pieces, 1));
        let traffic = traffic(&profile, &requests);
        let mut outcome = |gb_per_s: f64| {
            profile.host_link.to_device_gb_s = gb_per_s;
            checked(&profile, setup, &traffic)
        };
        let (slow, fast) = (outcome(link), outcome(link * faster));
        if slow.hit_tokens == fast.hit_tokens {
            prop_assert!(fast.ttft_s.mean <= slow.ttft_s.mean, "{} {}", fast.ttft_s.mean, slow.ttft_s.mean);
        } else {
            prop_assert!(layers && fast.hit_tokens.l1 > slow.hit_tokens.l1);
        }
    }
}
