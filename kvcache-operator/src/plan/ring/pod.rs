//! What the ring needs to know of a pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::api::{SERVE_PORT_NAME, SERVER_CONTAINER, annotation};

/// A pod of the cache's StatefulSet. Pods of others are not to be passed, whatever labels they have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingPod {
    /// The pod's name, which is its name in the ring.
    pub name: String,
    /// Its IP address, without brackets; none while it has none.
    pub host: Option<String>,
    /// Where its server listens, not 0; none where that is not known.
    pub port: Option<u16>,
    /// Whether it serves.
    pub state: RingPodState,
}

/// Whether a pod serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingPodState {
    /// It starts, has failed, ends, or nothing is known of it.
    NotReady,
    /// It is ready since then, by the clock of its node.
    Ready(Timestamp),
    /// It is to leave the ring and not to come back, because it has [`annotation::DRAIN`].
    Draining,
}

impl RingPod {
    /// What `pod` says of itself, which needs no spec: `port` is what [`serve_port`] says.
    pub fn of(pod: &Pod, port: Option<u16>) -> Self {
        let metadata = &pod.metadata;
        let status = pod.status.as_ref();
        let drained = metadata.annotations.as_ref().and_then(|all| all.get(annotation::DRAIN));
        let ready = status.and_then(|status| status.conditions.as_ref()).and_then(|conditions| {
            conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
        let state = match ready {
            _ if drained.is_some_and(|value| value == "true") => RingPodState::Draining,
            // A pod that ends stays ready until its server has gone, but the server has been told.
            _ if metadata.deletion_timestamp.is_some() => RingPodState::NotReady,
            None => RingPodState::NotReady,
            // Kubelets say when; without it nothing speaks against any time.
            Some(ready) => RingPodState::Ready(
                ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            ),
        };
        let host = status.and_then(|status| status.pod_ip.clone()).filter(|ip| !ip.is_empty());
        Self { name: metadata.name.clone().unwrap_or_default(), host, port, state }
    }
}

/// Where the server of `pod` listens: while a new template is rolled out, pods of the old one listen where that says.
/// None where the pod does not say, and then it is wherever servers of the cache listen.
pub fn serve_port(pod: &Pod) -> Option<u16> {
    let containers = &pod.spec.as_ref()?.containers;
    let server = containers.iter().find(|container| container.name == SERVER_CONTAINER)?;
    let port = server.ports.iter().flatten().find(|port| port.name.as_deref() == Some(SERVE_PORT_NAME))?;
    u16::try_from(port.container_port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> RingPod {
        let pod = serde_json::from_value(json).expect("a pod");
        RingPod::of(&pod, serve_port(&pod))
    }

    #[test]
    fn a_pod_says_whether_it_serves() {
        let ready = serde_json::json!([
            {"type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-11-22T05:00:00Z"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T06:00:00Z"}
        ]);
        let since = "2026-11-22T06:00:00Z".parse().expect("a time");
        let status = serde_json::json!({"podIP": "10.0.0.7", "conditions": ready});
        let read = pod(serde_json::json!({"metadata": {"name": "kv-0"}, "status": status}));
        let state = RingPodState::Ready(since);
        let expected = RingPod { name: "kv-0".into(), host: Some("10.0.0.7".into()), port: None, state };
        assert_eq!(read, expected);
        let state = |metadata: serde_json::Value, status: &serde_json::Value| {
            pod(serde_json::json!({"metadata": metadata, "status": status})).state
        };
        let ends = serde_json::json!({"name": "kv-0", "deletionTimestamp": "2026-11-22T07:00:00Z"});
        assert_eq!(state(ends, &status), RingPodState::NotReady);
        let drained =
            |value: &str| serde_json::json!({"name": "kv-0", "annotations": {annotation::DRAIN: value}});
        assert_eq!(state(drained("true"), &status), RingPodState::Draining);
        assert_eq!(state(drained("false"), &status), RingPodState::Ready(since));
        let not_ready = serde_json::json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
        assert_eq!(state(serde_json::json!({"name": "kv-0"}), &not_ready), RingPodState::NotReady);
        // Right after it was made.
        let new = pod(serde_json::json!({"metadata": {"name": "kv-0"}, "status": {"podIP": ""}}));
        assert_eq!(
            new,
            RingPod { name: "kv-0".into(), host: None, port: None, state: RingPodState::NotReady }
        );
    }

    #[test]
    fn a_pod_says_where_its_server_listens() {
        let container =
            |name: &str, ports: serde_json::Value| serde_json::json!({"name": name, "ports": ports});
        let port = |containers: &[serde_json::Value]| {
            pod(serde_json::json!({"metadata": {"name": "kv-0"}, "spec": {"containers": containers}})).port
        };
        let named = |name: &str, port: i32| serde_json::json!({"name": name, "containerPort": port});
        let other = container("sidecar", serde_json::json!([named(SERVE_PORT_NAME, 1)]));
        let ports = serde_json::json!([named("manage", 8088), named(SERVE_PORT_NAME, 12345)]);
        assert_eq!(port(&[other.clone(), container(SERVER_CONTAINER, ports)]), Some(12345));
        let without = container(SERVER_CONTAINER, serde_json::json!([named("manage", 8088)]));
        assert_eq!(port(&[other, without]), None);
        let zero = container(SERVER_CONTAINER, serde_json::json!([named(SERVE_PORT_NAME, 0)]));
        assert_eq!(port(&[zero]), None);
    }
}
