//! What lies in `deploy/`: files that follow from the code are as the code makes them, samples do what they say.
#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "support/admission.rs"]
mod admission;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use admission::admit;
use kvcache_operator::api::{Backend, KVCache, Metadata, Options, Pods, Reason, accept};
use kvcache_operator::generated;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn text(path: &str) -> String {
    fs::read_to_string(deploy().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn documents(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files below a folder of `deploy`, by their paths from there.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(deploy().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path.trim_start_matches("./").to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_made_from_the_code_is_up_to_date() {
    for (path, made) in generated::files().unwrap() {
        assert!(text(path) == made, "deploy/{path} is not what the code makes: run `make deploy-files`");
    }
}

#[test]
fn what_is_written_as_yaml_is_read_as_the_same() {
    let definition = serde_json::to_value(<KVCache as kube::CustomResourceExt>::crd()).unwrap();
    assert_eq!(documents("crd/kvcaches.yaml"), [definition]);
    assert_eq!(documents("base/rbac.yaml"), kvcache_operator::rbac::objects(generated::NAMESPACE));
}

#[test]
fn all_files_can_be_read() {
    let mut read = 0;
    for path in files(".") {
        if path.contains("/templates/") {
            continue; // Not YAML before it is rendered.
        } else if path.ends_with(".yaml") {
            documents(&path);
        } else if path.ends_with(".json") {
            serde_json::from_str::<Value>(&text(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        } else {
            continue;
        }
        assert!(!text(&path).contains('\t'), "a tab in {path}");
        read += 1;
    }
    assert!(read > 10, "{read} files");
}

/// What becomes of a sample: the reason of the condition `Accepted`.
fn outcome(path: &str, adopt: &[Backend]) -> (Reason, Option<kvcache_operator::api::Accepted>) {
    let sample = documents(path);
    let [sample] = sample.as_slice() else { panic!("{path} has {} documents", sample.len()) };
    let stored = admit(sample, None).unwrap_or_else(|problems| panic!("{path}: {problems:?}"));
    assert_unchanged(sample, &stored, path);
    let mut cache: KVCache = serde_json::from_value(stored).unwrap_or_else(|error| panic!("{path}: {error}"));
    cache.metadata.uid = Some("6f1c4a52-0000-4000-8000-000000000000".to_owned());
    let options = Options {
        adopt: adopt.iter().copied().collect::<BTreeSet<_>>(),
        server_image: "server".to_owned(),
        redis_image: "redis".to_owned(),
    };
    match accept(&cache, &options) {
        Ok(accepted) => (Reason::Valid, Some(accepted)),
        Err(refusal) => (refusal.reason, None),
    }
}

/// Everything that is written is stored as it is written.
fn assert_unchanged(written: &Value, stored: &Value, path: &str) {
    match (written, stored) {
        (Value::Object(written), Value::Object(stored)) => {
            for (key, value) in written {
                let stored = stored.get(key).unwrap_or_else(|| panic!("{path}.{key} is dropped"));
                assert_unchanged(value, stored, &format!("{path}.{key}"));
            }
        }
        (Value::Array(written), Value::Array(stored)) if written.len() == stored.len() => {
            for (written, stored) in written.iter().zip(stored) {
                assert_unchanged(written, stored, &format!("{path}[]"));
            }
        }
        _ => assert_eq!(written, stored, "{path}"),
    }
}

#[test]
fn our_samples_are_served_by_everyone() {
    for name in ["kvcache", "kvcache-redis", "kvcache-rdma"] {
        let (reason, accepted) = outcome(&format!("samples/{name}.yaml"), &[]);
        assert_eq!(reason, Reason::Valid, "{name}");
        let accepted = accepted.unwrap();
        assert_eq!(accepted.backend, Backend::KvCache);
        assert_eq!(accepted.notes, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn infinistores_samples_are_served_where_it_is_adopted() {
    for (name, is_external, is_template) in [
        ("aibrix-infinistore", false, false),
        ("aibrix-infinistore-external", true, false),
        ("aibrix-infinistore-template", false, true),
    ] {
        let path = format!("samples/{name}.yaml");
        assert_eq!(outcome(&path, &[]).0, Reason::UnknownBackend, "{name}");
        let (reason, accepted) = outcome(&path, &[Backend::InfiniStore]);
        assert_eq!(reason, Reason::Valid, "{name}");
        let accepted = accepted.unwrap();
        assert_eq!((accepted.ports.serve, accepted.ports.manage), (12345, 8088), "{name}");
        assert_eq!(matches!(accepted.metadata, Metadata::External { .. }), is_external, "{name}");
        assert_eq!(matches!(accepted.workload.pods, Pods::Template(_)), is_template, "{name}");
    }
}

#[test]
fn samples_of_other_backends_are_stored_and_left_alone() {
    for name in ["aibrix-hpkv", "aibrix-vineyard"] {
        let (reason, _) = outcome(&format!("samples/{name}.yaml"), &Backend::ALL);
        assert_eq!(reason, Reason::UnknownBackend, "{name}");
    }
}

#[test]
fn every_sample_is_tested() {
    let tested = [
        "aibrix-hpkv",
        "aibrix-infinistore",
        "aibrix-infinistore-external",
        "aibrix-infinistore-template",
        "aibrix-vineyard",
        "kvcache",
        "kvcache-rdma",
        "kvcache-redis",
        "refused/aibrix-v0.2",
    ];
    let there: BTreeSet<String> = files("samples").into_iter().collect();
    assert_eq!(there, tested.map(|name| format!("samples/{name}.yaml")).into());
}

#[test]
fn what_was_written_for_aibrix_0_2_is_refused_at_admission() {
    let sample = documents("samples/refused/aibrix-v0.2.yaml").remove(0);
    assert_eq!(admit(&sample, None).unwrap_err(), ["spec.service.ports: Required value"]);
    // Without a service, a client that does not ask for strict fields has the rest dropped without a word: an empty
    // spec is left, which names no backend, so that nothing is run for it.
    let mut bare = sample;
    bare["spec"].as_object_mut().unwrap().remove("service");
    let stored = admit(&bare, None).unwrap();
    assert_eq!(stored["spec"].get("cacheSpec"), None);
    assert_eq!(stored["spec"].get("replicas"), None);
    let cache: KVCache = serde_json::from_value(stored).unwrap();
    let options = Options {
        adopt: Backend::ALL.into_iter().collect(),
        server_image: String::new(),
        redis_image: String::new(),
    };
    assert_eq!(accept(&cache, &options).unwrap_err().reason, Reason::UnknownBackend);
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(&text("monitoring/dashboard.json")).unwrap();
    let documents = ["../docs/metrics.md", "../docs/server.md", "../docs/operator.md"].map(text).concat();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
            asked.extend(words.filter(|word| word.contains("kvcache_")).map(str::to_owned));
        }
    }
    assert!(asked.len() > 25, "{asked:?}");
    for metric in asked {
        let name = metric.strip_suffix("_bucket").unwrap_or(&metric);
        // With the quote, or a metric whose name only begins like this would do.
        let is_documented =
            [format!("`{name}`"), format!("`{name}{{")].iter().any(|quoted| documents.contains(quoted));
        assert!(is_documented, "{metric} is in no document");
    }
}

#[test]
fn every_reason_is_documented() {
    let document = text("../docs/operator.md");
    let source = include_str!("../src/api/conditions.rs");
    let variants = source.split("pub enum Reason {").nth(1).unwrap().split('}').next().unwrap();
    let names: Vec<&str> = variants.lines().filter_map(|line| line.trim().strip_suffix(',')).collect();
    assert!(names.len() > 15 && names.contains(&"KeyInUse"), "{names:?}");
    for name in names {
        assert!(document.contains(&format!("`{name}`")), "{name} is missing in docs/operator.md");
    }
}
