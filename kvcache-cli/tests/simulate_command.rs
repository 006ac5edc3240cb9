//! Runs the built `kvcache simulate` as a user would.

mod document;

use std::process::{Command, Output};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn kvcache(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvcache")).args(args).output().expect("the binary runs")
}

fn simulate(args: &[&str]) -> Output {
    kvcache(&[&["simulate"], args].concat())
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// Writes `text` to a file of this test's own.
fn file(name: &str, text: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("a temporary file");
    path.to_str().expect("text").to_owned()
}

/// Two prompts of 4,000 tokens, the second one with the head of the first, ten seconds later.
const TWO: &str = "{\"workload\": 1}
{\"timestamp\": 0, \"output_length\": 10, \"pieces\": [[1, 3000], [2, 1000]]}
{\"timestamp\": 10000, \"output_length\": 10, \"pieces\": [[1, 3000], [3, 1000]]}
";

fn outcomes(output: &Output) -> Vec<serde_json::Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn json_has_a_line_for_each_rate_and_set_up() {
    let path = file("two.jsonl", TWO);
    let lines = outcomes(&simulate(&[&path, "--json"]));
    let setups: Vec<&str> = lines.iter().map(|line| line["setup"].as_str().expect("text")).collect();
    assert_eq!(setups, ["none", "prefix", "whole", "layers", "whole+l2", "layers+l2"]);
    assert_eq!((&lines[0]["profile"], &lines[0]["policy"]), (&"a100-8b".into(), &"default".into()));
    for line in &lines {
        assert_eq!((&line["served"]["completed"], &line["qps"]), (&2.into(), &serde_json::Value::Null));
        assert_eq!(line["offered_per_s"], 0.1);
    }
    assert_eq!(
        (&lines[0]["hit_tokens"]["device"], &lines[1]["hit_tokens"]["device"]),
        (&0.into(), &2992.into())
    );
    // Two steps of 2,048 and 1,952 tokens: 2 x 12.3 ms, 4,000 x 103 us, and 3.36 ns for each of the 8,002,000 pairs.
    let first_s = 0.0246 + 0.412 + 0.02688672;
    assert!((lines[0]["ttft_s"]["max"].as_f64().expect("a number") - first_s).abs() < 1e-8);
    let sweep = outcomes(&simulate(&[&path, "--qps", "0.5,2", "--setup", "none,layers", "--json"]));
    let rows: Vec<_> = sweep.iter().map(|line| (line["qps"].as_f64(), line["setup"].as_str())).collect();
    let expected = [(0.5, "none"), (0.5, "layers"), (2.0, "none"), (2.0, "layers")];
    assert_eq!(rows, expected.map(|(qps, setup)| (Some(qps), Some(setup))));
}

#[test]
fn the_same_command_prints_the_same_bytes() {
    let share = ["workload", "share", "--preset", "aibrix-shared", "--requests", "60", "--seed", "5"];
    let path = file("share.jsonl", &stdout(&kvcache(&share)));
    let run = |seed: &str| stdout(&simulate(&[&path, "--qps", "3", "--gpu-blocks", "900", "--seed", seed]));
    let text = run("1");
    assert_eq!(text, run("1"));
    assert_ne!(text, run("2"));
    assert!(text.starts_with("60 requests, "), "{text}");
    assert!(
        text.contains("\na100-8b: 900 blocks in the engine (1.8 GiB), 32768 in L1 (64.0 GiB), 262144 in L2 "),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2 + 3 + 6, "{text}");
}

/// What any change of the model changes. After a change that is meant, the file is what the command prints.
#[test]
fn a_golden_run() {
    let share = ["workload", "share", "--preset", "toolbench", "--requests", "300", "--seed", "7"];
    let path = file("golden.jsonl", &stdout(&kvcache(&share)));
    let sizes = ["--gpu-blocks", "1200", "--l1-blocks", "2000", "--l2-blocks", "6000"];
    let text = stdout(&simulate(&[&[path.as_str(), "--qps", "5"][..], &sizes].concat()));
    assert_eq!(text, include_str!("data/simulate_golden.txt"), "{text}");
}

#[test]
fn recorded_times_are_made_faster() {
    let path = file("recorded.jsonl", TWO);
    let lines =
        outcomes(&simulate(&[&path, "--qps", "0.2", "--arrivals", "recorded", "--setup", "none", "--json"]));
    assert_eq!(lines[0]["offered_per_s"], 0.2);
}

#[test]
fn sessions_can_be_served_so_many_at_a_time() {
    let untimed = TWO.replace("\"timestamp\": 0, ", "").replace("\"timestamp\": 10000, ", "");
    let path = file("untimed.jsonl", &untimed);
    let output = simulate(&[&path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("request 0 (from 0) has no timestamp; give a rate or how many sessions")
    );
    let closed = outcomes(&simulate(&[&path, "--concurrency", "1", "--setup", "none", "--json"]));
    assert_eq!((&closed[0]["queue_depth_max"], &closed[0]["kept_up"]), (&1.into(), &serde_json::Value::Null));
    let header =
        file("closed.jsonl", &untimed.replace("\"workload\": 1", "\"workload\": 1, \"concurrency\": 2"));
    let both = outcomes(&simulate(&[&header, "--setup", "none", "--json"]));
    assert_eq!(both[0]["queue_depth_max"], 2);
    assert_eq!(
        outcomes(&simulate(&[&header, "--qps", "1", "--setup", "none", "--json"]))[0]["kept_up"],
        true
    );
}

#[test]
fn what_is_too_long_is_refused_and_what_is_left_is_said() {
    let path = file("long.jsonl", TWO);
    let text = stdout(&simulate(&[&path, "--gpu-blocks", "200", "--setup", "prefix"]));
    assert!(text.contains("2 refused: more than 3200 tokens"), "{text}");
    let text = stdout(&simulate(&[&path, "--horizon", "5", "--setup", "prefix"]));
    assert!(text.contains("at the horizon 0 were unfinished, 1 had not come"), "{text}");
}

#[test]
fn impossible_parameters_are_named_with_the_remedy() {
    let path = file("good.jsonl", TWO);
    let text = stdout(&simulate(&["--show-profile", "a100-8b"]));
    let mut profile: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    profile["host_link"]["to_device_gb_s"] = 0.into();
    let zero = file("zero.json", &profile.to_string());
    profile["host_link"]["to_device_gbs"] = 5.into();
    let misspelt = file("misspelt.json", &profile.to_string());
    for (args, expected) in [
        (&[path.as_str(), "--profile", &zero][..], "host_link.to_device_gb_s is 0: give 1e-6 to 1e6 GB/s"),
        (&[&path, "--profile", &misspelt], "unknown field `to_device_gbs`"),
        (
            &[&path, "--profile", "a100"],
            "`a100` is neither a preset (a100-8b, h100-8b, h100x4-70b) nor a file",
        ),
        (&[&path, "--gpu-blocks", "1"], "gpu_blocks is 1: give 2 to 2^30 blocks"),
        (&[&path, "--policy", "s3-fifo"], "`s3-fifo` (did you mean `s3fifo`?)"),
        (
            &[&path, "--l1-blocks", "0", "--setup", "layers"],
            "needs an L1, and profile `a100-8b` has l1_blocks 0",
        ),
        (&[&path, "--l2-blocks", "0", "--setup", "layers+l2"], "needs an L2, and profile `a100-8b` has none"),
        (&["/nowhere"], "cannot open /nowhere"),
        (&["--show-profile", "a100"], "`a100` is no preset; there are a100-8b"),
    ] {
        let output = simulate(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let error = stderr(&output);
        assert!(error.starts_with("kvcache: ") && error.contains(expected), "{args:?}: {error}");
    }
    for args in [
        &[][..],
        &[&path, "--qps", "0"],
        &[&path, "--qps", "1", "--concurrency", "2"],
        &[&path, "--setup", "layer"],
    ] {
        assert_eq!(simulate(args).status.code(), Some(2), "{args:?}");
    }
    // Without an L1 and an L2, those set-ups are left out unless they were asked for.
    assert_eq!(outcomes(&simulate(&[&path, "--l1-blocks", "0", "--json"])).len(), 2);
    assert_eq!(outcomes(&simulate(&[&path, "--l2-blocks", "0", "--json"])).len(), 4);
}

#[test]
fn bad_lines_are_refused_or_left_out() {
    let path = file("broken-times.jsonl", &TWO.replace("[[1, 3000], [3, 1000]]}", "[[1, 30"));
    let output = simulate(&[&path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("broken-times.jsonl:3: not a request: EOF while parsing"),
        "{}",
        stderr(&output)
    );
    let output = simulate(&[&path, "--bad-lines", "skip", "--setup", "none", "--json"]);
    assert_eq!(outcomes(&output)[0]["served"]["requests"], 1);
    assert!(stderr(&output).contains("1 line is left out: 3: "), "{}", stderr(&output));
}

/// Steps that certain costs would take, their profile, and cases of it: 1 ms a step, 10 us a token, 2 ms a step of answers.
#[test]
fn a_calibrated_profile_predicts_what_it_was_made_of() {
    let text = stdout(&simulate(&["--show-profile", "a100-8b"]));
    let profile: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let steps: Vec<serde_json::Value> = [(0, 256), (256, 256), (512, 100), (0, 10), (300, 40)]
        .map(|(computed, tokens)| {
            serde_json::json!({"prefill": [[computed, tokens]], "ms": 1.0 + 0.01 * f64::from(tokens)})
        })
        .into_iter()
        .chain([(1, 100), (2, 300), (3, 50), (1, 900)].map(|(count, context)| {
            serde_json::json!({"decode": vec![context; count], "ms": 2.0})
        }))
        .collect();
    let measured = file("steps.json", &serde_json::json!({"profile": profile, "steps": steps}).to_string());
    let output = simulate(&["--calibrate", &measured]);
    assert!(
        stderr(&output).contains("5 steps of prompts are met to 0.0 % on average, 4 of answers to 0.0 %")
    );
    let fitted = file("fitted.json", &stdout(&output));
    let compute: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!((compute["compute"]["prefill_token_us"].as_f64().expect("a number") - 10.0).abs() < 1e-3);
    let cases = |ttft_ms: f64| {
        let case = serde_json::json!({"cases": [{"name": "a prompt", "prompt_tokens": 1500, "ttft_ms": [ttft_ms, ttft_ms]}]});
        file(&format!("cases-{ttft_ms}.json"), &case.to_string())
    };
    let good = cases(16.0);
    let text = stdout(&simulate(&["--predict", &good, "--profile", &fitted, "--within", "2"]));
    assert!(
        text.lines().nth(1).is_some_and(|line| line.starts_with("a prompt") && line.ends_with("%")),
        "{text}"
    );
    let lines = outcomes(&simulate(&["--predict", &good, "--profile", &fitted, "--json"]));
    assert!((lines[0]["predicted_ms"].as_f64().expect("a number") - 16.17).abs() < 0.02, "{lines:?}");
    let output = simulate(&["--predict", &cases(20.0), "--profile", &fitted, "--within", "15"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("1 of 1 predictions are off by more than 15 %"), "{}", stderr(&output));
    let empty = file("empty.json", "{\"cases\": [{\"name\": \"a\", \"prompt_tokens\": 5, \"ttft_ms\": []}]}");
    let output = simulate(&["--predict", &empty, "--profile", &fitted]);
    assert!(stderr(&output).contains("case `a`: `ttft_ms` is empty"), "{}", stderr(&output));
    let output = simulate(&["--calibrate", &good]);
    assert!(stderr(&output).contains("missing field `profile`"), "{}", stderr(&output));
}

/// What was measured of a real engine, with the bound that the document names.
#[test]
fn the_committed_measurements_are_predicted() {
    for clock in ["cpu", "wall"] {
        let measured =
            |what: &str| format!("{REPOSITORY}/benches/results/2026-11-22-engine-model/{what}-{clock}.json");
        let profile =
            file(&format!("{clock}.json"), &stdout(&simulate(&["--calibrate", &measured("steps")])));
        let cases = measured("cases");
        let lines =
            outcomes(&simulate(&["--predict", &cases, "--profile", &profile, "--within", "15", "--json"]));
        assert_eq!(lines.len(), 6);
    }
}

/// Every block of shell commands in the document, one after the other in one folder.
#[test]
fn the_commands_in_the_document_work() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulate-document");
    std::fs::create_dir_all(&folder).expect("a folder");
    document::run("simulate.md", &folder, |block, _| block.to_owned());
}

#[test]
fn the_presets_are_listed() {
    let text = stdout(&simulate(&["--list-profiles"]));
    assert_eq!(text.lines().count(), 3);
    assert!(text.contains("a100-8b         9200 blocks of 16 tokens in the engine (18.0 GiB)"), "{text}");
}
