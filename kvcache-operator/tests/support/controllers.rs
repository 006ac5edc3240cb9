//! The StatefulSet controller and the kubelets, as far as an operator sees them: pods with names, addresses and
//! readiness, one at a time replaced when the template changes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api_server::{ApiServer, Key};

/// Makes one step: every StatefulSet comes closer to what it asks for, and every pod that starts becomes ready. Returns
/// whether something changed.
pub fn step(server: &ApiServer) -> bool {
    let before = server.revision();
    for set in server.all("statefulsets") {
        if set["metadata"]["deletionTimestamp"].is_null() {
            step_set(server, &set);
        }
    }
    server.revision() != before
}

/// Takes a pod away, as a node that dies does. The controller makes another one, at another address.
pub fn kill(server: &ApiServer, namespace: &str, name: &str) {
    assert!(server.delete(&Key::new("pods", namespace, name)), "no pod {name}");
}

/// Makes all pods of all StatefulSets at once, ready. For many of them: it never looks at the pods that there are.
pub fn fill(server: &ApiServer) {
    for set in server.all("statefulsets") {
        let wanted = set["spec"]["replicas"].as_u64().unwrap_or(1);
        for ordinal in 0..wanted {
            let made = server.put(pod(&set, ordinal));
            make_ready(server, &made);
        }
        let status = json!({
            "observedGeneration": set["metadata"]["generation"],
            "replicas": wanted, "readyReplicas": wanted, "updatedReplicas": wanted,
        });
        server.put_status(&Key::of(&set), status);
    }
}

fn pod(set: &Value, ordinal: u64) -> Value {
    let name = set["metadata"]["name"].as_str().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": set["metadata"]["namespace"], "name": format!("{name}-{ordinal}"),
            "labels": set["spec"]["template"]["metadata"]["labels"],
            "annotations": { "test/revision": set["spec"]["template"].to_string() },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": name,
                "uid": set["metadata"]["uid"], "controller": true,
            }],
        },
        "spec": set["spec"]["template"]["spec"],
    })
}

/// A new pod has a new address: no uid comes twice.
fn make_ready(server: &ApiServer, pod: &Value) {
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let number: u64 = uid.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let ready = json!({
        "podIP": format!("10.{}.{}.{}", number / 62_500, number / 250 % 250, number % 250 + 1),
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": server.now().to_string() }],
    });
    server.put_status(&Key::of(pod), ready);
}

fn step_set(server: &ApiServer, set: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&set["metadata"]["namespace"]), text(&set["metadata"]["name"]));
    let wanted = set["spec"]["replicas"].as_u64().unwrap_or(1);
    let revision = set["spec"]["template"].to_string();
    let pods: BTreeMap<u64, Value> = server
        .all("pods")
        .into_iter()
        .filter(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == set["metadata"]["uid"])
        .filter_map(|pod| {
            let ordinal = text(&pod["metadata"]["name"]).strip_prefix(&format!("{name}-"))?.parse().ok()?;
            Some((ordinal, pod))
        })
        .collect();
    let is_current = |pod: &Value| pod["metadata"]["annotations"]["test/revision"] == revision.as_str();
    let is_ready = |pod: &Value| pod["status"]["conditions"][0]["status"] == "True";

    // Too many, or made from an old template while all others are ready: one goes.
    for ordinal in pods.keys().filter(|ordinal| **ordinal >= wanted) {
        server.delete(&Key::new("pods", &namespace, &format!("{name}-{ordinal}")));
    }
    let kept = || pods.iter().filter(|(ordinal, _)| **ordinal < wanted);
    if kept().count() as u64 == wanted
        && kept().all(|(_, pod)| is_ready(pod))
        && let Some((ordinal, _)) = kept().rev().find(|(_, pod)| !is_current(pod))
    {
        server.delete(&Key::new("pods", &namespace, &format!("{name}-{ordinal}")));
    }
    for ordinal in (0..wanted).filter(|ordinal| !pods.contains_key(ordinal)) {
        server.put(pod(set, ordinal));
    }
    for (_, pod) in kept().filter(|(_, pod)| !is_ready(pod)) {
        make_ready(server, pod);
    }
    let now: Vec<Value> = server
        .all("pods")
        .into_iter()
        .filter(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == set["metadata"]["uid"])
        .collect();
    let count = |filter: &dyn Fn(&Value) -> bool| now.iter().filter(|pod| filter(pod)).count();
    let status = json!({
        "observedGeneration": set["metadata"]["generation"],
        "replicas": now.len(),
        "readyReplicas": count(&is_ready),
        "updatedReplicas": count(&is_current),
    });
    server.put_status(&Key::new("statefulsets", &namespace, &name), status);
}
