//! `kvcache doctor` as users run it.

use std::process::{Command, Output};

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvcache")).arg("doctor").args(args).output().expect("the tool starts")
}

#[test]
fn the_report_is_json_and_its_grade_is_the_exit_status() {
    let output = doctor(&["--json", "--no-python"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let status = match report["grade"].as_str() {
        Some("fine") => 0,
        Some("degraded") => 1,
        Some("unusable") => 2,
        other => panic!("grade {other:?}"),
    };
    assert_eq!(output.status.code(), Some(status));
    let findings = report["findings"].as_array().expect("a list");
    for subject in [
        "copies",
        "memory",
        "huge pages",
        "locked memory",
        "NUMA",
        "shared memory",
        "slab files",
        "GPU",
        "network",
        "RDMA",
    ] {
        assert!(
            findings.iter().any(|finding| finding["subject"] == subject),
            "{subject} is missing: {findings:?}"
        );
    }
    for finding in findings.iter().filter(|finding| finding["grade"] != "fine") {
        assert!(finding["remedy"].is_string(), "a finding without a remedy: {finding}");
    }
}

#[test]
fn a_model_is_sized() {
    let folder = std::env::temp_dir().join(format!("kvcache-doctor-model-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = r#"{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "torch_dtype": "bfloat16", "max_position_embeddings": 8192}"#;
    std::fs::write(folder.join("config.json"), config).expect("a file");
    let folder_text = folder.display().to_string();
    let output =
        doctor(&["--no-python", "--model", &folder_text, "--capacity", "256MiB", "--block-tokens", "32"]);
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("4 layers, 2 KV heads of 64, bfloat16: 2 KiB of KV a token"), "{text}");
    assert!(text.contains("capacity 256 MiB: 131072 tokens, 16.0 prompts"), "{text}");
}

#[test]
fn a_model_that_cannot_be_read_is_unusable() {
    let output = doctor(&["--no-python", "--model", "/no/such/model"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(error.starts_with("kvcache: cannot read /no/such/model/config.json: "), "{error}");
}
