//! The operator as it is deployed: its program, with its own flags, as its service account.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bridge::{Asked, Bridge};
use crate::control_plane::{ControlPlane, User};
use crate::loopback::LoopbackAddress;
use crate::process::{Process, command};
use crate::wait;

/// Where `deploy/` puts it.
pub(crate) const NAMESPACE: &str = "kvcache-system";

/// Whom it is to the API server.
pub(crate) fn account() -> User {
    User::service_account(NAMESPACE, kvcache_operator::rbac::NAME)
}

/// A running operator. Killed when it is dropped; if its test fails, it says what it logged last.
pub(crate) struct Operator {
    process: Process,
    bridge: Bridge,
    log: PathBuf,
    http: SocketAddr,
    _address: LoopbackAddress,
}

impl Operator {
    /// Starts one. Its name is its identity, and unique in the test.
    pub(crate) async fn start(plane: &ControlPlane, name: &str, flags: &[&str]) -> Self {
        let (bridge, kubeconfig) = plane.bridge_of_its_own(name, &account()).await;
        let address = LoopbackAddress::lease();
        let http = SocketAddr::from((address.ip(), PORT));
        let mut program = command(env!("CARGO_BIN_EXE_kvcache-operator").as_ref());
        program.env("KUBECONFIG", kubeconfig).env("POD_NAME", name).env("POD_NAMESPACE", NAMESPACE);
        program.args(["--server-image=kvcache-server:test", "--log-level=debug"]);
        program.arg(format!("--listen={http}")).args(flags);
        let log = plane.folder().join(format!("{name}.log"));
        let process = Process::start(program, &log).expect("the operator starts");
        Self { process, bridge, log, http, _address: address }
    }

    /// Between it and the API server.
    pub(crate) fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it asked the API server to change, but for its lease and events.
    pub(crate) fn writes(&self) -> Vec<Asked> {
        let mut asked = self.bridge.asked();
        asked.retain(|asked| asked.is_write() && !asked.is_about("leases") && !asked.is_about("events"));
        asked
    }

    /// Whether it answers a path with 200.
    pub(crate) async fn is_ok(&self, path: &str) -> bool {
        self.get(path).await.is_some_and(|(head, _)| head.starts_with("HTTP/1.1 200"))
    }

    /// A number of its metrics, by its name with labels; `None` if there is none, or it does not answer.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics").await?;
        let line = body.lines().find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with(' ')));
        line?.trim().parse().ok()
    }

    async fn get(&self, path: &str) -> Option<(String, String)> {
        let ask = async {
            let mut stream = TcpStream::connect(self.http).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned()))
        };
        tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten()
    }

    /// Waits until it leads.
    pub(crate) async fn leads(&self, within: Duration) {
        wait::until("the operator leads", within, || async {
            assert_eq!(self.end(), None, "{}", self.log());
            self.metric("kvcache_operator_leader").await.filter(|is_leader| *is_leader == 1.0).map(drop)
        })
        .await;
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<ExitStatus> {
        self.process.end()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) -> ExitStatus {
        tokio::time::timeout(wait::LONG, self.process.ended()).await.expect("it ends")
    }

    /// Asks it to end, and waits. It was allowed everything that it ever asked for.
    pub(crate) async fn stop(self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.was_allowed_everything();
    }

    /// Ends it at once.
    pub(crate) async fn kill(self) {
        self.signal(Signal::KILL);
        self.ended().await;
        self.was_allowed_everything();
    }

    /// Its role has every right that it used.
    pub(crate) fn was_allowed_everything(&self) {
        let mut refused = self.bridge.asked();
        refused.retain(|asked| asked.status == Some(http::StatusCode::FORBIDDEN));
        assert!(refused.is_empty(), "{refused:#?}");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(LOG_LINES_MAX).collect();
            eprintln!("{} ends with:", self.log.display());
            lines.into_iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// As deployed.
const PORT: u16 = 8080;
const LOG_LINES_MAX: usize = 60;
