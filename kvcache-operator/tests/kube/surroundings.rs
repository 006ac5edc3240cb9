//! What the harness promises of the control plane, beside running pods.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use serde_json::json;

use crate::control_plane::{ControlPlane, User, Wishes};
use crate::kubelet::{Kubelet, Settings};
use crate::objects::{NAMESPACE, apply, namespace};
use crate::process::{Process, command};
use crate::wait;

/// A custom resource with a rule that this API server cannot have.
fn definition() -> serde_json::Value {
    let spec = json!({"type": "object", "properties": {"replicas": {"type": "integer", "default": 1}},
        "x-kubernetes-validations": [{"rule": "self.replicas < 5"}]});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.test.example"},
        "spec": {
            "group": "test.example", "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things", "singular": "thing"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec,
                    "status": {"type": "object", "properties": {"current": {"type": "integer"}}}}}},
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_today_are_accepted_and_collected_with_their_owner() {
    let wishes = Wishes { crds: vec![definition()], ..Wishes::default() };
    let Some(plane) = ControlPlane::start(&wishes).await else { return };
    let client = plane.client(&User::admin());
    namespace(&client).await;
    let kind =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("test.example", "v1", "Thing"), "things");
    let things = Api::<DynamicObject>::namespaced_with(client.clone(), NAMESPACE, &kind);
    let thing = json!({"apiVersion": "test.example/v1", "kind": "Thing", "metadata": {"name": "a"},
        "spec": {"unknown": 1}});
    let thing: DynamicObject = serde_json::from_value(thing).expect("an object");
    let thing = things.create(&PostParams::default(), &thing).await.expect("created");
    // Defaults are set, and what the schema does not know is pruned.
    assert_eq!(thing.data["spec"], json!({"replicas": 1}));

    let owner = json!([{"apiVersion": "test.example/v1", "kind": "Thing", "name": "a", "uid": thing.uid(),
        "controller": true, "blockOwnerDeletion": true}]);
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), NAMESPACE);
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "a", "ownerReferences": owner},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    let applied = apply(&budgets, &budget).await;
    assert_eq!(
        applied
            .spec
            .and_then(|spec| spec.selector)
            .and_then(|selector| selector.match_labels)
            .map_or(0, |labels| labels.len()),
        1
    );
    // Its watch is translated as well.
    let mut events = Box::pin(watcher(budgets.clone(), Config::default()).default_backoff());
    let mut next = async || {
        let event = futures::StreamExt::next(&mut events);
        tokio::time::timeout(wait::SHORT, event)
            .await
            .expect("in time")
            .expect("it goes on")
            .expect("no error")
    };
    assert!(matches!(next().await, Event::Init));
    assert!(matches!(next().await, Event::InitApply(budget) if budget.name_any() == "a"));
    assert!(matches!(next().await, Event::InitDone));

    things.delete("a", &DeleteParams::background()).await.expect("deleted");
    wait::until("the garbage collector has removed what it owned", wait::LONG, || async {
        budgets.list(&ListParams::default()).await.ok().filter(|list| list.items.is_empty()).map(drop)
    })
    .await;
    // The disruption controller may have had something to say before that.
    while !matches!(next().await, Event::Delete(budget) if budget.name_any() == "a") {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_may_do_what_roles_allow() {
    let account = User::service_account(NAMESPACE, "operator");
    let wishes = Wishes { users: vec![account.clone()], ..Wishes::default() };
    let Some(plane) = ControlPlane::start(&wishes).await else { return };
    let admin = plane.client(&User::admin());
    namespace(&admin).await;
    let maps = Api::<ConfigMap>::namespaced(plane.client(&account), NAMESPACE);
    let refused = maps.list(&ListParams::default()).await.expect_err("no role");
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));

    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]});
    apply(&Api::<Role>::namespaced(admin.clone(), NAMESPACE), &role).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": NAMESPACE}]});
    apply(&Api::<RoleBinding>::namespaced(admin, NAMESPACE), &binding).await;
    wait::until("the role is known", wait::SHORT, || async {
        maps.list(&ListParams::default()).await.ok().map(drop)
    })
    .await;
    let refused = maps.delete("a", &DeleteParams::default()).await.expect_err("its role only lists");
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_outlives_the_api_server_and_watches_go_on() {
    let Some(plane) = ControlPlane::start(&Wishes::default()).await else { return };
    let client = plane.client(&User::admin());
    namespace(&client).await;
    let maps = Api::<ConfigMap>::namespaced(client, NAMESPACE);
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    apply(&maps, &map("before")).await;
    let mut events = Box::pin(watcher(maps.clone(), Config::default()).default_backoff());
    let mut until = async |wanted: &str| loop {
        let event = futures::StreamExt::next(&mut events);
        match tokio::time::timeout(wait::LONG, event).await.expect("in time").expect("it goes on") {
            Ok(Event::Apply(map) | Event::InitApply(map)) if map.name_any() == wanted => return,
            _ => {}
        }
    };
    until("before").await;
    plane.stop_api_server().await;
    assert!(maps.get("before").await.is_err());
    plane.start_api_server().await;
    assert_eq!(maps.get("before").await.expect("it was stored").name_any(), "before");
    apply(&maps, &map("after")).await;
    until("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_checks_manifests_on_the_server() {
    let Some(plane) = ControlPlane::start(&Wishes::default()).await else { return };
    let check = async |manifest: serde_json::Value| {
        let file = plane.folder().join("manifest.json");
        std::fs::write(&file, manifest.to_string()).expect("the test's own folder");
        let mut kubectl = command(&plane.program("kubectl"));
        kubectl.arg("--kubeconfig").arg(plane.kubeconfig(&User::admin()));
        kubectl
            .args(["apply", "--dry-run=server", "--validate=false", "--cache-dir"])
            .arg(plane.folder().join("cache"));
        kubectl.arg("-f").arg(&file);
        let log = plane.folder().join("kubectl.log");
        let process = Process::start(kubectl, &log).expect("it starts");
        let status = tokio::time::timeout(wait::LONG, process.ended()).await.expect("it ends");
        (status.success(), std::fs::read_to_string(&log).expect("a log"))
    };
    let budget = |unavailable: serde_json::Value| {
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "a", "namespace": "default"},
            "spec": {"maxUnavailable": unavailable, "selector": {"matchLabels": {"app": "a"}}}})
    };
    let (is_accepted, said) = check(budget(json!(1))).await;
    assert!(is_accepted && said.contains("server dry run"), "{said}");
    let (is_accepted, said) = check(budget(json!(-1))).await;
    assert!(!is_accepted && said.contains("maxUnavailable"), "{said}");
    let budgets = Api::<PodDisruptionBudget>::all(plane.client(&User::admin()));
    assert!(budgets.list(&ListParams::default()).await.expect("a list").items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_redis_is_a_real_one_and_unknown_images_are_not_pulled() {
    if std::env::var_os("KUBE_BIN").is_some() && std::env::var_os("REDIS_SERVER").is_none() {
        eprintln!("SKIPPED, nothing was tested: REDIS_SERVER names no redis-server");
        return;
    }
    let Some(plane) = ControlPlane::start(&Wishes::default()).await else { return };
    let client = plane.client(&User::admin());
    namespace(&client).await;
    let kubelet = Kubelet::start(client.clone(), Settings::new(NAMESPACE, plane.folder().to_owned())).await;
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let pod = |name: &str, container: serde_json::Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 5}})
    };
    let redis = json!({"name": "redis", "image": "docker.io/library/redis:7.4", "args": ["--save", ""],
        "readinessProbe": {"tcpSocket": {"port": 6379}}});
    apply(&pods, &pod("redis", redis)).await;
    apply(&pods, &pod("other", json!({"name": "other", "image": "busybox", "command": ["sleep", "1"]})))
        .await;
    let ip = wait::until("Redis is ready", wait::LONG, || {
        std::future::ready(kubelet.pods().iter().find(|pod| pod.is_ready).and_then(|pod| pod.ip))
    })
    .await;
    let answer = async |question: &[u8]| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect((ip, 6379)).await.expect("it listens");
        stream.write_all(question).await.expect("sent");
        let mut answer = [0; 64];
        let count = stream.read(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer[..count]).into_owned()
    };
    assert_eq!(answer(b"SET kvcache_nodes here\r\n").await, "+OK\r\n");
    assert_eq!(answer(b"GET kvcache_nodes\r\n").await, "$4\r\nhere\r\n");

    let waiting = wait::until("the other pod says why it waits", wait::SHORT, || async {
        let status = pods.get("other").await.ok()?.status?;
        let container = status.container_statuses?.pop()?;
        container.state?.waiting?.reason.filter(|_| status.phase.as_deref() == Some("Pending"))
    })
    .await;
    assert_eq!(waiting, "ErrImagePull");

    // A node that is held up reports nothing as ready, and a frozen process does not end by itself.
    kubelet.hold_readiness("redis", true);
    wait::until("Redis is held not ready", wait::SHORT, || {
        std::future::ready(kubelet.pods().iter().all(|pod| !pod.is_ready).then_some(()))
    })
    .await;
    assert_eq!(answer(b"PING\r\n").await, "+PONG\r\n");
    kubelet.freeze("redis");
    for name in ["redis", "other"] {
        pods.delete(name, &DeleteParams::default()).await.expect("deleted");
    }
    wait::until("both are gone", wait::LONG, || std::future::ready(kubelet.pods().is_empty().then_some(())))
        .await;
    let ends = kubelet.ends();
    assert!(ends.len() == 1 && ends[0].exit_code.is_none() && ends[0].took.as_secs() >= 5, "{ends:?}");
    assert!(pods.list(&ListParams::default()).await.expect("a list").items.is_empty());
    kubelet.stop().await;
}
