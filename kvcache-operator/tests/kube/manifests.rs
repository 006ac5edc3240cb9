//! What lies in `deploy/`, before a real API server.

use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::control_plane::User;
use crate::crd::without_cel;
use crate::kubelet::{Image, Kubelet, Settings};
use crate::life::everything;
use crate::operator;
use crate::process::{Process, command};
use crate::wait;
use crate::world::{World, cache, deployed};

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

/// Applies documents server-side, with further flags; whether they were accepted, and what was said.
async fn apply(world: &World, documents: &[Value], flags: &[&str]) -> (bool, String) {
    let file = world.plane.folder().join("manifest.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": documents});
    std::fs::write(&file, list.to_string()).expect("the test's own folder");
    let file = file.display().to_string();
    let mut args = vec!["apply", "--server-side", "--force-conflicts", "-f", &file];
    args.extend(flags);
    kubectl(world, &args).await
}

/// Has the API server check documents as if they were applied.
async fn check(world: &World, documents: &[Value]) -> (bool, String) {
    apply(world, documents, &["--dry-run=server"]).await
}

/// What `kubectl apply -k deploy/` applies, but for the CEL rules, and how many of these there were.
async fn put_together(world: &World) -> (Vec<Value>, usize) {
    let (is_put_together, text) = kubectl(world, &["kustomize", &deploy().display().to_string()]).await;
    assert!(is_put_together, "{text}");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let (documents, rules): (Vec<_>, Vec<_>) = documents.into_iter().map(without_cel).unzip();
    (documents, rules.iter().sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_deployed_is_accepted() {
    let Some(world) = World::start().await else { return };
    let (documents, rules) = put_together(&world).await;
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
    let left = world.caches().list(&ListParams::default()).await.expect("a list").items;
    assert!(left.is_empty(), "a dry run leaves nothing");
    eprintln!(
        "NOT TESTED HERE: deploy/policy and deploy/monitoring, of whose kinds this API server has none"
    );
    world.kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deployed_is_an_operator_that_works() {
    let Some(world) = World::start().await else { return };
    // In a pod the account's token is a file at a place that this machine has not.
    let kubeconfig = world.plane.kubeconfig(&operator::account()).display().to_string();
    let image = Image {
        name: "kvcache-operator".to_owned(),
        program: env!("CARGO_BIN_EXE_kvcache-operator").into(),
        env: vec![("KUBECONFIG".to_owned(), kubeconfig)],
    };
    let mut settings = Settings::new(operator::NAMESPACE, world.plane.folder().to_owned());
    "node-b".clone_into(&mut settings.node);
    settings.programs.images.push(image);
    let operators = Kubelet::start(world.client.clone(), settings).await;
    let (documents, _) = put_together(&world).await;
    let (is_applied, said) = apply(&world, &documents, &[]).await;
    assert!(is_applied, "{said}");

    let pods = Api::<Pod>::namespaced(world.client.clone(), operator::NAMESPACE);
    let rolled_out = async |generation: i64| {
        let deployments = Api::<Deployment>::namespaced(world.client.clone(), operator::NAMESPACE);
        wait::until("both operators are ready, and no others are there", wait::LONG, || async {
            let status = deployments.get("kvcache-operator").await.ok()?.status?;
            let is_so = status.observed_generation >= Some(generation)
                && status.updated_replicas == Some(2)
                && status.available_replicas == Some(2)
                && operators.pods().len() == 2;
            is_so.then_some(())
        })
        .await;
        let list = pods.list(&ListParams::default()).await.expect("a list").items;
        let account = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        assert!(list.iter().all(|pod| account(pod).as_deref() == Some("kvcache-operator")));
        list.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    };
    let first = rolled_out(1).await;
    world.apply(&cache("kv")).await;
    world.settled("kv").await;

    // An update of the operator: whoever leads hands over.
    let restart = ["rollout", "restart", "deployment/kvcache-operator", "-n", operator::NAMESPACE];
    let (is_restarted, said) = kubectl(&world, &restart).await;
    assert!(is_restarted, "{said}");
    let second = rolled_out(2).await;
    assert!(second.iter().all(|name| !first.contains(name)), "{first:?} {second:?}");
    let ends = operators.ends();
    assert!(ends.len() == 2 && ends.iter().all(|end| end.exit_code == Some(0)), "{ends:?}");
    let mut wanted = cache("kv");
    wanted["spec"]["cache"]["replicas"] = json!(2);
    world.apply(&wanted).await;
    world.settled("kv").await;

    // As `docs/operator.md` has it: the caches, and then everything.
    let (is_deleted, said) = kubectl(&world, &["delete", "kvcaches", "--all", "--all-namespaces"]).await;
    assert!(is_deleted, "{said}");
    let file = world.plane.folder().join("manifest.json").display().to_string();
    let (is_deleted, said) = kubectl(&world, &["delete", "-f", &file]).await;
    assert!(is_deleted, "{said}");
    wait::until("nothing is left", wait::LONG, || async {
        (everything(&world.client).await.is_empty() && operators.pods().is_empty()).then_some(())
    })
    .await;
    operators.stop().await;
    world.kubelet.stop().await;
}
