//! A pod's status, as a kubelet writes it.

use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use jiff::Timestamp;
use serde_json::{Value, json};

/// What the container does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    Waiting { reason: String, message: String },
    Running { since: Timestamp },
    Terminated(Ended),
}

/// How the container's last process ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
}

/// What is so of a pod. Conditions remember when they turned.
#[derive(Clone, Debug)]
pub(super) struct PodState {
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) container: String,
    pub(super) image: String,
    pub(super) state: State,
    pub(super) last: Option<Ended>,
    pub(super) restarts: u32,
    pub(super) has_started: bool,
    is_ready: bool,
    turned: Timestamp,
    accepted: Timestamp,
}

impl PodState {
    pub(super) fn new(container: String, image: String) -> Self {
        let now = Timestamp::now();
        Self {
            ip: None,
            container,
            image,
            state: State::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() },
            last: None,
            restarts: 0,
            has_started: false,
            is_ready: false,
            turned: now,
            accepted: now,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub(super) fn set_ready(&mut self, is_ready: bool) {
        if std::mem::replace(&mut self.is_ready, is_ready) != is_ready {
            self.turned = Timestamp::now();
        }
    }

    /// The `status` of the pod's object. Fields that it does not name are not a kubelet's.
    pub(super) fn to_json(&self) -> Value {
        let is_running = matches!(self.state, State::Running { .. });
        let condition = |kind: &str, is_true: bool, turned| {
            let status = if is_true { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastTransitionTime": time(turned)})
        };
        let state = match &self.state {
            State::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
            State::Running { since } => json!({"running": {"startedAt": time(*since)}}),
            State::Terminated(ended) => ended.to_json(),
        };
        // A pod was running once its container was, also while that is restarted.
        let has_run = is_running || self.last.is_some() || matches!(self.state, State::Terminated(_));
        json!({
            "phase": if has_run { "Running" } else { "Pending" },
            "hostIP": super::HOST_IP,
            "podIP": self.ip,
            "podIPs": self.ip.map(|ip| json!([{"ip": ip}])),
            "startTime": time(self.accepted),
            "conditions": [
                condition("Initialized", true, self.accepted),
                condition("Ready", self.is_ready, self.turned),
                condition("ContainersReady", self.is_ready, self.turned),
                condition("PodScheduled", true, self.accepted),
            ],
            "containerStatuses": [{
                "name": self.container,
                "image": self.image,
                "imageID": "",
                "ready": self.is_ready,
                "started": is_running && self.has_started,
                "restartCount": self.restarts,
                "state": state,
                "lastState": self.last.as_ref().map_or_else(|| json!({}), Ended::to_json),
            }],
        })
    }
}

impl Ended {
    fn to_json(&self) -> Value {
        // As a shell and a container's runtime count.
        let code = self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default());
        json!({"terminated": {
            "exitCode": code,
            "reason": if code == 0 { "Completed" } else { "Error" },
            "startedAt": time(self.started),
            "finishedAt": time(self.finished),
        }})
    }
}

/// In whole seconds, as all of Kubernetes has it.
fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: &Value) -> &Value {
        let conditions = status["conditions"].as_array().expect("conditions");
        conditions.iter().find(|condition| condition["type"] == "Ready").expect("one is Ready")
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut pod = PodState::new("server".to_owned(), "image".to_owned());
        let past: Timestamp = "2024-01-02T03:04:05.6Z".parse().expect("a time");
        pod.turned = past;
        assert_eq!((&pod.to_json()["phase"], &pod.to_json()["podIP"]), (&json!("Pending"), &Value::Null));
        pod.set_ready(false);
        assert_eq!(ready(&pod.to_json())["lastTransitionTime"], "2024-01-02T03:04:05Z");
        pod.ip = Some(Ipv4Addr::new(127, 70, 0, 1));
        pod.state = State::Running { since: past };
        pod.set_ready(true);
        let status = pod.to_json();
        assert_eq!(
            (ready(&status)["status"].as_str(), status["podIP"].as_str()),
            (Some("True"), Some("127.70.0.1"))
        );
        assert_ne!(ready(&status)["lastTransitionTime"], "2024-01-02T03:04:05Z");
    }

    #[test]
    fn a_restarted_container_says_how_it_ended() {
        let mut pod = PodState::new("server".to_owned(), "image".to_owned());
        let past: Timestamp = "2024-01-02T03:04:05Z".parse().expect("a time");
        pod.last = Some(Ended { status: ExitStatus::from_raw(9), started: past, finished: past });
        pod.restarts = 1;
        let status = pod.to_json();
        assert_eq!(status["phase"], "Running");
        let container = &status["containerStatuses"][0];
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 137);
        assert_eq!((&container["restartCount"], &container["started"]), (&json!(1), &json!(false)));
    }
}
