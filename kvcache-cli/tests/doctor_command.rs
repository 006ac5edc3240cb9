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

/// With the library of the driver's tests in place of a driver.
#[test]
fn gpus_are_listed() {
    let folder = std::env::temp_dir().join(format!("kvcache-doctor-gpu-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../kvcache-cuda/tests/cuda_driver/libcuda.c");
    let compiled = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
        .args(["-shared", "-fPIC", source, "-o"])
        .arg(folder.join("libcuda.so.1"))
        .status();
    let output = Command::new(env!("CARGO_BIN_EXE_kvcache"))
        .args(["doctor", "--json", "--no-python"])
        .env("LD_LIBRARY_PATH", &folder)
        .env("FAKE_CUDA_VERSION", "13000")
        .output();
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    assert!(compiled.expect("a C compiler, which links this test as well").success());
    let report: serde_json::Value =
        serde_json::from_slice(&output.expect("the tool starts").stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("a list");
    let gpu = findings.iter().find(|finding| finding["subject"] == "GPU").expect("a finding");
    let values = &gpu["values"];
    assert_eq!(values["devices"][1]["name"], "Fake GPU 1", "{gpu}");
    assert_eq!(values["devices"][1]["compute_capability"], "9.0");
    assert_eq!((values["cuda"].as_str(), values["batch_copies"].as_bool()), (Some("13.0"), Some(true)));
}

/// The tool starts where there is no CUDA: it looks for the driver when it is asked to.
#[test]
fn the_tool_links_no_library_of_cuda() {
    let output = Command::new("readelf")
        .args(["-dW", env!("CARGO_BIN_EXE_kvcache")])
        .output()
        .expect("readelf, of binutils");
    let text = String::from_utf8_lossy(&output.stdout);
    let needed: Vec<&str> = text.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.iter().any(|line| line.contains("[libc.so.6]")), "{text}");
    assert!(!needed.iter().any(|line| line.contains("[libcu") || line.contains("[libnv")), "{needed:?}");
}
