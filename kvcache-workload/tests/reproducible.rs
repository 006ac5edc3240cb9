//! The same parameters and the same seed make the same bytes, on every machine and in every version.
//!
//! Reports name workloads by command and seed. If one of these tests fails, a change has made all of those another
//! workload.

use kvcache_workload::{Agent, Conversation, Header, Popularity, Preset, Request, Share, Writer};
use xxhash_rust::xxh3::xxh3_64;

/// The bytes of the file and how many requests it has.
fn hash(requests: impl Iterator<Item = Request>) -> (u64, u64) {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &Header::default()).expect("memory");
    requests.for_each(|request| writer.write(&request).expect("memory"));
    let count = writer.requests();
    writer.into_inner().expect("memory");
    (count, xxh3_64(&bytes))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect(text)
}

#[test]
fn presets() {
    let expected = [
        ("toolbench", 0x91a3_a2e1_66c4_bea3),
        ("embodied", 0xd766_26af_9dc2_c877),
        ("programming", 0xc814_ce26_7fa3_6e46),
        ("videoqa", 0xc77c_dd57_08f0_2d84),
        ("loogle", 0x5c17_ccc9_a451_bf9a),
        ("aibrix-shared", 0x6950_32ed_6db5_fb51),
        ("bird-text2sql", 0xf468_1021_5b18_06fd),
    ];
    let got = expected.map(|(name, _)| {
        let preset = Preset::named(name).expect("there");
        let classes = preset.classes().expect("read");
        let share = Share { classes, requests: preset.requests, rate: parse("sine:4:2:60"), seed: 7 };
        let (count, hash) = hash(share.requests().expect("possible"));
        assert_eq!(count, preset.requests);
        (name, hash)
    });
    assert_eq!(got, expected, "{got:#x?}");
}

#[test]
fn conversations() {
    let conversation = Conversation {
        sessions: 300,
        turns: parse("normal:3.55:2.89"),
        turn_tokens: parse("pareto:80:472"),
        output_tokens: parse("lognormal:200:200"),
        system_tokens: parse("uniform:100:900"),
        system_prompts: 5,
        popularity: Popularity::Zipf(1.1),
        think_ms: parse("lognormal:20000:20000"),
        token_ms: 20.0,
        input_tokens_max: 32_768,
        rate: parse("burst:0.5:4:30:0.25"),
        seed: 7,
    };
    let requests = conversation.requests().expect("possible").map(|request| request.expect("no input"));
    let got = hash(requests);
    assert_eq!(got, (1138, 0x0601_7cad_e54a_f90d), "{got:#x?}");
}

#[test]
fn agents() {
    let agent = Agent {
        sessions: 100,
        turns: parse("uniform:2:5"),
        rounds: parse("uniform:0:3"),
        tools: parse("uniform:1:4"),
        tool_ms: parse("uniform:100:500"),
        retry: 0.1,
        retries_max: 2,
        system_tokens: 1000,
        task_tokens: parse("lognormal:256:100"),
        user_tokens: parse("64"),
        tool_tokens: parse("pareto:200:400"),
        output_tokens: parse("64"),
        think_ms: parse("uniform:0:1000"),
        token_ms: 20.0,
        input_tokens_max: 131_072,
        rate: parse("step:0.1:100,1"),
        seed: 7,
    };
    let got = hash(agent.requests().expect("possible").map(|request| request.expect("no input")));
    assert_eq!(got, (818, 0x03eb_1b50_fcf7_4b69), "{got:#x?}");
}
