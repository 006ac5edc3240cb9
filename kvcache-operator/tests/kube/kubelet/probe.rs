//! A pod's own probes, asked as a kubelet asks them.

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe as Spec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::invocation::Refusal;

/// What the probes have found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Health {
    pub(super) has_started: bool,
    pub(super) is_ready: bool,
    /// The container has to be restarted.
    pub(super) is_dead: bool,
}

/// All probes of a container.
#[derive(Clone, Debug)]
pub(super) struct Probes {
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Probe {
    check: Check,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Check {
    Http { host: String, port: u16, path: String },
    Tcp { host: String, port: u16 },
}

impl Probes {
    /// No period is longer than `period_max`, so that tests need not wait for a cluster's.
    pub(super) fn of(container: &Container, ip: Ipv4Addr, period_max: Duration) -> Result<Self, Refusal> {
        let probe = |spec: &Option<Spec>| {
            spec.as_ref().map(|spec| Probe::of(spec, container, ip, period_max)).transpose()
        };
        Ok(Self {
            startup: probe(&container.startup_probe)?,
            readiness: probe(&container.readiness_probe)?,
            liveness: probe(&container.liveness_probe)?,
        })
    }

    /// Probes for as long as it is polled. `is_held` says that the container is not ready, whatever it answers.
    pub(super) async fn follow(self, is_held: impl Fn() -> bool, health: watch::Sender<Health>) {
        if let Some(startup) = &self.startup
            && !startup.passes().await
        {
            health.send_modify(|health| health.is_dead = true);
            return std::future::pending().await;
        }
        health.send_modify(|health| health.has_started = true);
        let readiness = async {
            let set = |is_ready| {
                health
                    .send_if_modified(|health| std::mem::replace(&mut health.is_ready, is_ready) != is_ready);
            };
            match &self.readiness {
                Some(probe) => probe.watch(&is_held, set).await,
                None => loop {
                    set(!is_held());
                    tokio::time::sleep(HELD_PERIOD).await;
                },
            }
        };
        let liveness = async {
            if let Some(probe) = &self.liveness {
                probe.fails().await;
                health.send_modify(|health| health.is_dead = true);
            }
            std::future::pending::<()>().await;
        };
        tokio::join!(readiness, liveness);
    }
}

impl Probe {
    fn of(spec: &Spec, container: &Container, ip: Ipv4Addr, period_max: Duration) -> Result<Self, Refusal> {
        let check = match spec {
            Spec { http_get: Some(get), .. } => Check::http(get, container, ip)?,
            Spec { tcp_socket: Some(socket), .. } => Check::Tcp {
                host: socket.host.clone().unwrap_or_else(|| ip.to_string()),
                port: port(&socket.port, container)?,
            },
            _ => return Err(Refusal::config("a probe is neither httpGet nor tcpSocket".to_owned())),
        };
        // Kubernetes' defaults.
        let seconds = |value: Option<i32>, default| Duration::from_secs(u64::from(count(value, default)));
        Ok(Self {
            check,
            initial_delay: seconds(spec.initial_delay_seconds, 0),
            period: seconds(spec.period_seconds, 10).min(period_max),
            timeout: seconds(spec.timeout_seconds, 1),
            successes: count(spec.success_threshold, 1),
            failures: count(spec.failure_threshold, 3),
        })
    }

    /// Waits until it has succeeded, or failed, as often as its thresholds say.
    async fn passes(&self) -> bool {
        tokio::time::sleep(self.initial_delay).await;
        let mut run = Run::default();
        loop {
            run.count(self.check.ask(self.timeout).await);
            if run.is_good && run.length >= self.successes {
                return true;
            }
            if !run.is_good && run.length >= self.failures {
                return false;
            }
            tokio::time::sleep(self.period).await;
        }
    }

    /// Waits until it has failed as often as its threshold says.
    async fn fails(&self) {
        tokio::time::sleep(self.initial_delay).await;
        let mut run = Run::default();
        loop {
            run.count(self.check.ask(self.timeout).await);
            if !run.is_good && run.length >= self.failures {
                return;
            }
            tokio::time::sleep(self.period).await;
        }
    }

    /// Reports for ever.
    async fn watch(&self, is_held: &impl Fn() -> bool, mut set: impl FnMut(bool)) {
        tokio::time::sleep(self.initial_delay).await;
        let mut run = Run::default();
        loop {
            let answer = self.check.ask(self.timeout).await;
            if is_held() {
                run = Run::default();
                set(false);
            } else {
                run.count(answer);
                if run.length >= if run.is_good { self.successes } else { self.failures } {
                    set(run.is_good);
                }
            }
            tokio::time::sleep(self.period).await;
        }
    }
}

/// Equal answers in a row.
#[derive(Default)]
struct Run {
    is_good: bool,
    length: u32,
}

impl Run {
    fn count(&mut self, is_good: bool) {
        self.length = if self.is_good == is_good { self.length.saturating_add(1) } else { 1 };
        self.is_good = is_good;
    }
}

impl Check {
    pub(super) fn http(get: &HTTPGetAction, container: &Container, ip: Ipv4Addr) -> Result<Self, Refusal> {
        if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
            return Err(Refusal::config("this kubelet asks over HTTP only".to_owned()));
        }
        Ok(Self::Http {
            host: get.host.clone().unwrap_or_else(|| ip.to_string()),
            port: port(&get.port, container)?,
            path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
        })
    }

    /// Whether it answers well in time: any status from 200 to 399, as for a kubelet.
    pub(super) async fn ask(&self, timeout: Duration) -> bool {
        let asked = async {
            match self {
                Self::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).await.map(|_| true),
                Self::Http { host, port, path } => {
                    status(host, *port, path).await.map(|code| (200..400).contains(&code))
                }
            }
        };
        tokio::time::timeout(timeout, asked).await.is_ok_and(|answer| answer.unwrap_or(false))
    }
}

/// The status code that a GET is answered with.
async fn status(host: &str, port: u16, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect((host, port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let code = String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| std::io::Error::other("no HTTP"))
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, Refusal> {
    let wrong = || Refusal::config(format!("a probe's port {port:?} is none of the container's"));
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            ports
                .filter(|port| port.name.as_ref() == Some(name))
                .map(|port| port.container_port)
                .next()
                .ok_or_else(wrong)?
        }
    };
    u16::try_from(number).map_err(|_| wrong())
}

fn count(value: Option<i32>, default: u32) -> u32 {
    // Zero is how an empty field may be written.
    value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

const HELD_PERIOD: Duration = Duration::from_millis(100);
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    /// A server whose answers are 200, or 503 while `is_bad`; it counts them.
    async fn server(is_bad: &'static AtomicBool, asked: &'static AtomicUsize) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 1024];
                let count = stream.read(&mut request).await.unwrap_or(0);
                assert!(request[..count].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                asked.fetch_add(1, Ordering::SeqCst);
                let code = if is_bad.load(Ordering::SeqCst) { "503 No" } else { "200 OK" };
                let _ = stream.write_all(format!("HTTP/1.1 {code}\r\n\r\n").as_bytes()).await;
            }
        });
        port
    }

    fn probes(container: serde_json::Value) -> Result<Probes, Refusal> {
        let container = serde_json::from_value(container).expect("a container");
        Probes::of(&container, Ipv4Addr::LOCALHOST, Duration::from_millis(10))
    }

    #[tokio::test]
    async fn readiness_follows_the_answers_by_the_thresholds() {
        static IS_BAD: AtomicBool = AtomicBool::new(true);
        static IS_HELD: AtomicBool = AtomicBool::new(true);
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let number = server(&IS_BAD, &ASKED).await;
        let container = json!({"name": "c", "ports": [{"name": "manage", "containerPort": number}],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "manage"}, "failureThreshold": 5}});
        let probes = probes(container).expect("right probes");
        let (sender, mut health) = watch::channel(Health::default());
        tokio::spawn(probes.follow(|| IS_HELD.load(Ordering::SeqCst), sender));
        let patience = Duration::from_secs(10);
        let mut wait = async |is_ready| {
            let wait = health.wait_for(|health| health.has_started && health.is_ready == is_ready);
            *tokio::time::timeout(patience, wait).await.expect("in time").expect("it probes")
        };
        wait(false).await;
        IS_BAD.store(false, Ordering::SeqCst);
        let before = ASKED.load(Ordering::SeqCst);
        crate::wait::until("held, it is asked", patience, || {
            std::future::ready((ASKED.load(Ordering::SeqCst) > before + 3).then_some(()))
        })
        .await;
        assert!(!wait(false).await.is_ready);
        IS_HELD.store(false, Ordering::SeqCst);
        wait(true).await;
        IS_BAD.store(true, Ordering::SeqCst);
        let before = ASKED.load(Ordering::SeqCst);
        assert!(!wait(false).await.is_dead);
        let asked = ASKED.load(Ordering::SeqCst) - before;
        assert!((4..=7).contains(&asked), "five failures in a row, {asked} asked");
    }

    #[tokio::test]
    async fn what_does_not_listen_never_starts_or_dies() {
        let closed =
            TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
        for kind in ["startupProbe", "livenessProbe"] {
            let container =
                json!({"name": "c", (kind): {"tcpSocket": {"port": closed}, "failureThreshold": 2}});
            let (sender, mut health) = watch::channel(Health::default());
            tokio::spawn(probes(container).expect("right probes").follow(|| false, sender));
            let wait = health.wait_for(|health| health.is_dead);
            let health = *tokio::time::timeout(Duration::from_secs(10), wait)
                .await
                .expect("in time")
                .expect("it probes");
            assert_eq!(health.has_started, kind == "livenessProbe");
        }
    }

    #[test]
    fn probes_that_cannot_be_asked_are_refused() {
        let port = json!({"name": "c", "readinessProbe": {"httpGet": {"port": "nowhere"}}});
        assert!(probes(port).expect_err("no such port").message.contains("nowhere"));
        let kind = json!({"name": "c", "livenessProbe": {"grpc": {"port": 1}}});
        assert!(probes(kind).is_err());
    }
}
