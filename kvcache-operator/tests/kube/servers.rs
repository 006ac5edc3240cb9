//! The harness itself: real controllers, real servers, a real client, and nothing left at the end. No operator.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, User, Wishes};
use crate::kubelet::{Kubelet, PodView, Settings};
use crate::objects::{NAMESPACE, apply, namespace};
use crate::process::exists;
use crate::ring_load::{RingLoad, number, violations};
use crate::wait;

const PORT: u16 = 12_345;

/// A set of cache servers that `owner` owns.
fn servers(replicas: u32, owner: &ConfigMap) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "kv", "ownerReferences": [{
            "apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(),
            "controller": true, "blockOwnerDeletion": true,
        }]},
        "spec": {
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "serviceName": "kv-headless-service",
            "selector": {"matchLabels": {"app": "kv"}},
            "template": {
                "metadata": {"labels": {"app": "kv"}},
                "spec": {"terminationGracePeriodSeconds": 20, "containers": [{
                    "name": "server", "image": "kvcache:test",
                    "args": ["serve", "--listen", "$(POD_IP):12345", "--manage", "$(POD_IP):8088", "--capacity", "30GiB"],
                    "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "ports": [{"name": "manage", "containerPort": 8088, "protocol": "TCP"}],
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": "manage"}},
                }]},
            },
        },
    })
}

/// Waits until the controller itself counts so many ready pods, and the kubelet knows no others.
async fn ready(sets: &Api<StatefulSet>, kubelet: &Kubelet, count: usize) -> Vec<PodView> {
    wait::until(&format!("{count} pods are ready"), wait::LONG, || async {
        let status = sets.get("kv").await.ok()?.status?;
        let pods = kubelet.pods();
        let is_so = status.ready_replicas.unwrap_or(0) as usize == count && pods.len() == count;
        (is_so && pods.iter().all(|pod| pod.is_ready)).then_some(pods)
    })
    .await
}

/// The members as a client's file has them, and its URL.
fn publish(plane: &ControlPlane, pods: &[PodView]) -> String {
    let members: Vec<_> = pods
        .iter()
        .map(|pod| {
            let ip = pod.ip.expect("it runs");
            json!({"name": pod.name, "address": format!("{ip}:{PORT}")})
        })
        .collect();
    let file = plane.folder().join("members.json");
    // Readers see the old file or the new one.
    let new = plane.folder().join("members.json.new");
    std::fs::write(&new, json!({"members": members}).to_string()).expect("the test's own folder");
    std::fs::rename(&new, &file).expect("the test's own folder");
    format!("file://{}", file.display())
}

fn pids(pods: &[PodView]) -> impl Iterator<Item = i32> {
    pods.iter().filter_map(|pod| pod.pid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_a_stateful_set_serve_through_faults_and_leave_nothing() {
    let Some(plane) = ControlPlane::start(&Wishes::default()).await else { return };
    let client = plane.client(&User::admin());
    namespace(&client).await;
    let kubelet = Kubelet::start(client.clone(), Settings::new(NAMESPACE, plane.folder().to_owned())).await;
    let (sets, pods) = (
        Api::<StatefulSet>::namespaced(client.clone(), NAMESPACE),
        Api::<Pod>::namespaced(client.clone(), NAMESPACE),
    );
    let owners = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}});
    let owner = apply(&owners, &owner).await;
    apply(&sets, &servers(3, &owner)).await;

    let first = ready(&sets, &kubelet, 3).await;
    assert_eq!(first.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["kv-0", "kv-1", "kv-2"]);
    let mut used: BTreeSet<i32> = pids(&first).collect();
    assert!(used.len() == 3 && used.iter().all(|pid| exists(*pid)));
    let said = pods.get("kv-1").await.expect("a pod").status.expect("a status");
    assert_eq!(said.pod_ip, first[1].ip.map(|ip| ip.to_string()));

    let remote = publish(&plane, &first);
    let load = RingLoad::start(&remote, plane.folder(), &["--values", "60", "--rate", "400"]);
    let report = load
        .until("values are put and got on every server", |report| {
            first.iter().all(|pod| {
                let server = format!("{}:{PORT}", pod.ip.expect("it runs"));
                report["servers"][&server]["get"]["done"].as_u64() > Some(20)
            })
        })
        .await;
    assert!(number(&report, "/put/done") > 20 && violations(&report) == 0, "{report}");

    // A container is restarted where it was, and empty.
    kubelet.crash("kv-0");
    let restarted = wait::until("the container was restarted", wait::LONG, || {
        let pod = kubelet.pods().into_iter().find(|pod| pod.name == "kv-0").filter(|pod| pod.restarts == 1);
        std::future::ready(pod.filter(|pod| pod.is_ready))
    })
    .await;
    assert_eq!((restarted.ip, &restarted.uid), (first[0].ip, &first[0].uid));
    let container =
        pods.get("kv-0").await.expect("a pod").status.and_then(|status| status.container_statuses);
    let container = container.expect("statuses").remove(0);
    let last = container.last_state.and_then(|state| state.terminated).expect("it was terminated");
    assert_eq!((container.restart_count, last.exit_code), (1, 137));

    // A server that does not answer is not ready, and is again when it does: nothing was restarted.
    let is_ready =
        |name: &str| kubelet.pods().iter().any(|pod| pod.name == name && pod.is_ready && pod.restarts == 0);
    kubelet.freeze("kv-2");
    wait::until("the frozen pod is not ready", wait::LONG, || {
        std::future::ready((!is_ready("kv-2")).then_some(()))
    })
    .await;
    kubelet.thaw("kv-2");
    wait::until("it goes on", wait::LONG, || std::future::ready(is_ready("kv-2").then_some(()))).await;

    // The same pod at another address: clients learn it from the list.
    kubelet.move_to_another_address("kv-1");
    let moved = wait::until("the pod is elsewhere", wait::LONG, || {
        let pod = kubelet.pods().into_iter().find(|pod| pod.name == "kv-1" && pod.is_ready);
        std::future::ready(pod.filter(|pod| pod.ip != first[1].ip))
    })
    .await;
    assert_eq!(moved.uid, first[1].uid);
    let second = ready(&sets, &kubelet, 3).await;
    used.extend(pids(&second));
    publish(&plane, &second);
    let address = format!("{}:{PORT}", moved.ip.expect("it runs"));
    load.until("the moved server is used", |report| {
        report["servers"][&address]["get"]["done"].as_u64() > Some(20)
    })
    .await;

    // Deleted, it is asked to end, and does; the controller makes another one of that name.
    pods.delete("kv-2", &DeleteParams::default()).await.expect("deleted");
    let replaced = wait::until("there is another pod", wait::LONG, || {
        let pod = kubelet.pods().into_iter().find(|pod| pod.name == "kv-2" && pod.is_ready);
        std::future::ready(pod.filter(|pod| pod.uid != first[2].uid))
    })
    .await;
    assert!(replaced.ip != first[2].ip && replaced.restarts == 0);
    let ends = kubelet.ends();
    assert!(ends.len() == 1 && ends[0].name == "kv-2" && ends[0].exit_code == Some(0), "{ends:?}");

    let report = load.end().await;
    assert_eq!(violations(&report), 0, "{report}");

    let third = ready(&sets, &kubelet, 3).await;
    used.extend(pids(&third));
    assert_eq!(used.len(), 6);
    owners.delete("owner", &DeleteParams::background()).await.expect("deleted");
    wait::until("the garbage collector has removed all of it", wait::LONG, || async {
        let all = ListParams::default();
        let is_empty =
            sets.list(&all).await.ok()?.items.is_empty() && pods.list(&all).await.ok()?.items.is_empty();
        (is_empty && kubelet.pods().is_empty()).then_some(())
    })
    .await;
    assert_eq!(
        kubelet.ends().iter().filter(|end| end.exit_code == Some(0)).count(),
        4,
        "{:?}",
        kubelet.ends()
    );
    assert_eq!(used.iter().filter(|pid| exists(**pid)).count(), 0);
    kubelet.stop().await;
}
