//! Runs the built `kvcache replay` as a user would.

use std::process::{Command, Output};

const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kvcache-core/tests/data/conversations.jsonl");

fn kvcache(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvcache")).args(args).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// 2,294 accesses; the misses are those of the core's golden test.
#[test]
fn json_has_the_promised_keys() {
    let text = stdout(&kvcache(&["replay", TRACE, "--capacity", "50", "--policy", "default", "--json"]));
    let outcome: serde_json::Value = serde_json::from_str(&text).expect("one object");
    assert_eq!(outcome["policy"], "default");
    assert_eq!(outcome["capacity_blocks"], 50);
    assert_eq!(outcome["requests"], 280);
    assert_eq!(outcome["accesses"], 2294);
    let ratio = |value: &serde_json::Value| value.as_f64().expect("a number");
    assert_eq!(ratio(&outcome["block_hit_ratio"]), (2294.0 - 1325.0) / 2294.0, "that of hit-density");
    assert_eq!(ratio(&outcome["lru"]["block_hit_ratio"]), (2294.0 - 1335.0) / 2294.0);
    let optimum = ratio(&outcome["optimum"]["block_hit_ratio"]);
    assert!(optimum > ratio(&outcome["block_hit_ratio"]), "{optimum}");
    let gap = optimum - (2294.0 - 1335.0) / 2294.0;
    assert!((ratio(&outcome["gap_share"]) - 10.0 / 2294.0 / gap).abs() < 1e-9);
    assert!(
        ratio(&outcome["token_hit_ratio"]) > ratio(&outcome["block_hit_ratio"]),
        "last blocks are partial"
    );
}

#[test]
fn several_capacities_and_policies_make_one_table() {
    let text = stdout(&kvcache(&[
        "replay",
        TRACE,
        "--capacity",
        "20,50",
        "--policy",
        "default",
        "--policy",
        "lru,s3fifo",
    ]));
    let rows: Vec<Vec<&str>> = text.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["block", "hit", "ratio"], "{text}");
    assert_eq!(rows[1], ["capacity", "of", "all", "lru", "default", "s3fifo", "optimum"], "{text}");
    assert_eq!(rows[3][..5], ["50", "4.9%", "0.4180", "0.4224", "0.4154"], "{text}");
    assert_eq!(rows[4][..2], ["default", "closes"], "{text}");
    assert_eq!(rows[7], ["token", "hit", "ratio"], "{text}");
    assert_eq!(rows.len(), 13, "{text}");
}

#[test]
fn capacities_are_shares_of_the_distinct_blocks_if_none_is_named() {
    let json =
        |args: &[&str]| stdout(&kvcache(&[&["replay", TRACE, "--json", "--policy", "lru"], args].concat()));
    let capacities = |text: String| -> Vec<u64> {
        let outcome = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("an object");
        text.lines().map(|line| outcome(line)["capacity_blocks"].as_u64().expect("a count")).collect()
    };
    // 1,016 distinct blocks.
    assert_eq!(capacities(json(&[])), [5, 10, 20, 50, 101, 203, 508]);
    assert_eq!(capacities(json(&["--capacity", "2.5%,7,100%"])), [25, 7, 1016]);
}

#[test]
fn a_picture_has_a_line_for_each_policy_and_both_bounds() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hits.svg");
    let plot = |path: &str| kvcache(&["replay", TRACE, "--capacity", "20,50,100", "--plot", path]);
    stdout(&plot(path.to_str().expect("text")));
    let picture = std::fs::read_to_string(&path).expect("it was written");
    assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"), "{picture}");
    for name in ["conversations.jsonl", "lru", "s3fifo", "default", "optimum", "capacity, blocks"] {
        assert!(picture.contains(&format!("\n{name}\n")), "{name} in {picture}");
    }
    let output = plot("/nowhere/hits.svg");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("cannot write the picture to /nowhere/hits.svg: No such file"), "{error}");
}

#[test]
fn an_unknown_policy_is_refused_with_the_nearest() {
    let output = kvcache(&["replay", TRACE, "--capacity", "50", "--policy", "s3-fifo"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("`s3-fifo` (did you mean `s3fifo`?)"), "{error}");
}

#[test]
fn bad_arguments_are_refused() {
    assert_eq!(kvcache(&["replay", TRACE, "--capacity", "101%"]).status.code(), Some(2));
    assert_eq!(kvcache(&["replay", TRACE, "--capacity", "0"]).status.code(), Some(2));
    assert_eq!(kvcache(&["replay", TRACE, "--capacity", "4294967295"]).status.code(), Some(1));
    assert_eq!(kvcache(&["replay", "/nowhere", "--capacity", "5"]).status.code(), Some(1));
}

/// Writes `lines` to a file of this test's own.
fn file(name: &str, lines: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, lines).expect("a temporary file");
    path.to_str().expect("text").to_owned()
}

/// Accesses and hit ratio at a capacity that never evicts.
fn roomy(args: &[&str]) -> (u64, f64) {
    let text =
        stdout(&kvcache(&[&["replay", "--capacity", "1000", "--policy", "lru", "--json"], args].concat()));
    let outcome: serde_json::Value = serde_json::from_str(&text).expect("one object");
    (outcome["accesses"].as_u64().expect("a count"), outcome["block_hit_ratio"].as_f64().expect("a ratio"))
}

#[test]
fn every_form_of_a_prompt_is_replayed_in_the_blocks_of_the_cache() {
    let pieces = file(
        "pieces.jsonl",
        "{\"workload\": 1}\n{\"pieces\": [[1, 100], [2, 28]]}\n{\"pieces\": [[1, 100], [3, 28]]}\n",
    );
    assert_eq!(roomy(&[&pieces, "--block-tokens", "16"]), (16, 6.0 / 16.0));
    assert_eq!(roomy(&[&pieces, "--block-tokens", "64"]), (4, 1.0 / 4.0));
    let text = file(
        "text.jsonl",
        "{\"prompt\": \"one two three four\"}\n{\"prompt\": \"one two three five\"}\n\
         {\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n",
    );
    assert_eq!(roomy(&[&text, "--block-tokens", "1"]), (4 + 4 + 2, 3.0 / 10.0));
    assert_eq!(roomy(&[&text, "--block-tokens", "1", "--bytes-per-token", "8"]), (2 + 2 + 1, 1.0 / 5.0));
    let hashes = file(
        "hashes.jsonl",
        "{\"input_length\": 64, \"block_tokens\": 16, \"hash_ids\": [1, 2, 3, 4]}\n\
         {\"input_length\": 64, \"block_tokens\": 16, \"hash_ids\": [1, 2, 3, 5]}\n",
    );
    assert_eq!(roomy(&[&hashes, "--block-tokens", "16"]), (8, 3.0 / 8.0));
    assert_eq!(roomy(&[&hashes, "--block-tokens", "32"]), (4, 1.0 / 4.0));
}

#[test]
fn bad_lines_are_refused_or_left_out() {
    let path =
        file("broken.jsonl", "{\"pieces\": [[1, 512]]}\n{\"pieces\": [[1, 51\n{\"pieces\": [[1, 512]]}\n");
    let output = kvcache(&["replay", &path, "--capacity", "5"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("broken.jsonl:2: not a request: EOF while parsing"), "{error}");
    let output = kvcache(&["replay", &path, "--capacity", "5", "--bad-lines", "skip", "--json"]);
    assert!(stdout(&output).contains("\"requests\":2,"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("broken.jsonl: 1 line is left out: 2: EOF while parsing"), "{error}");
}
