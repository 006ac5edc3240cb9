//! What lies in `deploy/`, before a real API server.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::control_plane::User;
use crate::crd::without_cel;
use crate::process::{Process, command};
use crate::wait;
use crate::world::{World, deployed};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Runs kubectl as the admin; whether it succeeded, and what it said.
async fn kubectl(world: &World, args: &[&str]) -> (bool, String) {
    let plane = &world.plane;
    let mut kubectl = command(&plane.program("kubectl"));
    kubectl.arg("--kubeconfig").arg(plane.kubeconfig(&User::admin()));
    kubectl.arg("--cache-dir").arg(plane.folder().join("cache")).args(args);
    let log = tempfile::NamedTempFile::new_in(plane.folder()).expect("the test's own folder");
    let process = Process::start(kubectl, log.path()).expect("it starts");
    let status = tokio::time::timeout(wait::LONG, process.ended()).await.expect("it ends");
    (status.success(), std::fs::read_to_string(log.path()).expect("a log"))
}

/// Has the API server check documents as if they were applied; what it said.
async fn check(world: &World, documents: &[Value]) -> (bool, String) {
    let file = world.plane.folder().join("manifest.json");
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": documents});
    std::fs::write(&file, list.to_string()).expect("the test's own folder");
    let file = file.display().to_string();
    let apply = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", &file];
    kubectl(world, &apply).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_deployed_is_accepted() {
    let Some(world) = World::start().await else { return };
    let folder = deploy().display().to_string();
    let (is_put_together, text) = kubectl(&world, &["kustomize", &folder]).await;
    assert!(is_put_together, "{text}");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let mut rules = 0;
    let documents: Vec<Value> = documents
        .into_iter()
        .map(|document| {
            let (document, left_out) = without_cel(document);
            rules += left_out;
            document
        })
        .collect();
    eprintln!("NOT TESTED HERE: {rules} CEL rules, which this API server does not have");
    assert!(documents.len() >= 11 && rules > 0, "{} documents", documents.len());
    let (is_accepted, said) = check(&world, &documents).await;
    assert!(is_accepted, "{said}");
    for document in &documents {
        let (kind, name) = (&document["kind"], document["metadata"]["name"].as_str().expect("a name"));
        let line = said.lines().find(|line| line.contains(&format!("/{name} ")));
        assert!(line.is_some_and(|line| line.contains("server dry run")), "{kind} {name}: {said}");
    }
    // It checks: what is wrong is not accepted.
    let mut wrong = documents.clone();
    let deployment = wrong.iter_mut().find(|document| document["kind"] == "Deployment").expect("an operator");
    deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = 70_000.into();
    let (is_accepted, said) = check(&world, &wrong).await;
    assert!(!is_accepted && said.contains("containerPort"), "{said}");

    let mut samples = 0;
    for entry in std::fs::read_dir(deploy().join("samples")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            let (is_accepted, said) = check(&world, &deployed(&format!("samples/{name}"))).await;
            assert!(is_accepted && said.contains("server dry run"), "{name}: {said}");
            samples += 1;
        }
    }
    assert!(samples >= 8, "{samples} samples");
    let left = world.caches().list(&kube::api::ListParams::default()).await.expect("a list").items;
    assert!(left.is_empty(), "a dry run leaves nothing");
    eprintln!(
        "NOT TESTED HERE: deploy/policy and deploy/monitoring, of whose kinds this API server has none"
    );
    world.kubelet.stop().await;
}
