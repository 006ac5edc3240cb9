//! A Kubernetes control plane of one test: etcd, kube-apiserver and kube-controller-manager, real ones.
//!
//! It has a folder and a loopback address of its own, so that any number of them can run at a time with the ports that they
//! always have. There is no scheduler and no node: pods stay pending until the [kubelet](crate::kubelet) takes them.
//! Authorization is RBAC. Users have fixed tokens, with the names and groups that service accounts have in a real cluster, so
//! that roles are bound to them in the same way. Clients and programs of today talk to it over a [bridge](crate::bridge).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use kube::config::Config;
use kube::{Client, api::Api};
use rustix::process::Signal;
use serde_json::json;

use crate::bridge::Bridge;
use crate::certificates::Certificates;
use crate::crd;
use crate::loopback::LoopbackAddress;
use crate::process::{Process, command};
use crate::wait;

/// Who talks to the API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

impl User {
    /// May do everything.
    pub(crate) fn admin() -> Self {
        Self { name: "admin".to_owned(), groups: vec!["system:masters".to_owned()] }
    }

    fn controllers() -> Self {
        Self { name: "system:kube-controller-manager".to_owned(), ..Self::admin() }
    }

    /// A service account, which may do what roles that are bound to it allow.
    pub(crate) fn service_account(namespace: &str, name: &str) -> Self {
        Self {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
        }
    }

    fn token(&self) -> String {
        format!("token-of-{}", self.name.replace(':', "-"))
    }

    /// The line of the token file.
    fn line(&self) -> String {
        format!("{},{},{},\"{}\"\n", self.token(), self.name, self.name, self.groups.join(","))
    }
}

/// What a test wants of its control plane.
#[derive(Clone, Default, Debug)]
pub(crate) struct Wishes {
    /// Beside the admin.
    pub(crate) users: Vec<User>,
    /// Custom resources, which are there before the controllers start: these look for new kinds only every half minute.
    pub(crate) crds: Vec<serde_json::Value>,
}

/// Dropping it ends all of it, in milliseconds. Of a test that fails it keeps the logs.
pub(crate) struct ControlPlane {
    // In the order in which they end: a server whose store is gone would only fill its log.
    controllers: Mutex<Option<Process>>,
    api_server: Mutex<Option<Process>>,
    _etcd: Process,
    bridge: Bridge,
    bridges: AtomicU16,
    programs: PathBuf,
    address: LoopbackAddress,
    certificates: Certificates,
    folder: Folder,
}

impl ControlPlane {
    /// Starts one, in three to five seconds; `None` where there is no control plane to test with, which is said then.
    ///
    /// # Panics
    ///
    /// If the programs are there and do not work: with the end of their logs.
    pub(crate) async fn start(wishes: &Wishes) -> Option<Self> {
        let Some(programs) = std::env::var_os("KUBE_BIN").map(PathBuf::from) else {
            eprintln!("SKIPPED, nothing was tested: KUBE_BIN names no control plane, see `make test-kube`");
            return None;
        };
        let folder = Folder::make();
        let address = LoopbackAddress::lease();
        let ip = address.ip();
        let certificates = Certificates::make(&folder.path, ip);
        let users: String =
            [User::admin(), User::controllers()].iter().chain(&wishes.users).map(User::line).collect();
        std::fs::write(folder.path.join("tokens.csv"), users).expect("the test's own folder");

        let mut etcd = command(&programs.join("etcd"));
        etcd.args(["--unsafe-no-fsync=true", "--data-dir"]).arg(folder.path.join("etcd"));
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            etcd.args([flag.to_owned(), format!("http://{ip}:{ETCD_PORT}")]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            etcd.args([flag.to_owned(), format!("http://{ip}:{ETCD_PEER_PORT}")]);
        }
        etcd.arg(format!("--initial-cluster=default=http://{ip}:{ETCD_PEER_PORT}"));
        let etcd = Process::start(etcd, &folder.path.join("etcd.log")).expect("etcd starts");

        let direct = client_at(&url(ip), &certificates, None);
        let bridge = Bridge::start(direct, ip, BRIDGE_PORT, Arc::clone(&certificates.tls)).await;

        let plane = Self {
            bridge,
            bridges: AtomicU16::new(1),
            controllers: Mutex::default(),
            api_server: Mutex::default(),
            _etcd: etcd,
            programs,
            address,
            certificates,
            folder,
        };
        plane.start_api_server().await;
        let client = plane.client(&User::admin());
        for definition in &wishes.crds {
            crd::apply(&client, definition).await;
        }
        plane.start_controllers();
        Some(plane)
    }

    /// A client with the user's token.
    pub(crate) fn client(&self, user: &User) -> Client {
        client_at(self.bridge.url(), &self.certificates, Some(user))
    }

    /// Writes a kubeconfig with the user's token, for programs.
    pub(crate) fn kubeconfig(&self, user: &User) -> PathBuf {
        self.write_kubeconfig(&user.token(), user, self.bridge.url())
    }

    /// A bridge for one program alone, and a kubeconfig for that.
    pub(crate) async fn bridge_of_its_own(&self, name: &str, user: &User) -> (Bridge, PathBuf) {
        let ip = self.address.ip();
        let port = BRIDGE_PORT + self.bridges.fetch_add(1, Ordering::Relaxed);
        let direct = client_at(&url(ip), &self.certificates, None);
        let bridge = Bridge::start(direct, ip, port, Arc::clone(&self.certificates.tls)).await;
        let kubeconfig = self.write_kubeconfig(name, user, bridge.url());
        (bridge, kubeconfig)
    }

    fn write_kubeconfig(&self, name: &str, user: &User, url: &str) -> PathBuf {
        let cluster = json!({"server": url, "certificate-authority": self.certificates.authority});
        let path = self.folder.path.join(format!("{name}.kubeconfig"));
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": user.token()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user", "namespace": "default"}}],
            "current-context": "test",
        });
        std::fs::write(&path, content.to_string()).expect("the test's own folder");
        path
    }

    /// For files of the test; gone with it, but kept if it fails.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// One of the programs beside the control plane's, such as `kubectl`.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Ends the API server at once, as a crash does. What was stored stays; nobody answers until it is started again.
    pub(crate) async fn stop_api_server(&self) {
        let server = locked(&self.api_server).take();
        if let Some(server) = server {
            server.signal(Signal::KILL);
            server.ended().await;
        }
    }

    /// Starts it, and waits until it is ready. Its history is empty then: watches that go on where they were are told that
    /// this is too long ago (410).
    pub(crate) async fn start_api_server(&self) {
        let Self { certificates, address, folder, .. } = self;
        let ip = address.ip();
        let mut server = command(&self.programs.join("kube-apiserver"));
        server
            .arg(format!("--etcd-servers=http://{ip}:{ETCD_PORT}"))
            .arg(format!("--bind-address={ip}"))
            .arg(format!("--advertise-address={ip}"))
            .arg(format!("--secure-port={API_PORT}"))
            .args(["--authorization-mode=RBAC", "--allow-privileged=true"])
            // Whoever sets a reference that blocks its owner's deletion needs a right to do that.
            .arg("--enable-admission-plugins=OwnerReferencesPermissionEnforcement")
            // Accounts are made by a controller that does not run, and pods would wait for them.
            .arg("--disable-admission-plugins=ServiceAccount")
            // The object `kubernetes` cannot have a loopback address, and nobody needs it.
            .arg("--endpoint-reconciler-type=none")
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--event-ttl=30m"])
            .args(["--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file"])
            .arg(&certificates.account_public_key)
            .arg("--service-account-signing-key-file")
            .arg(&certificates.account_key)
            .arg("--tls-cert-file")
            .arg(&certificates.server)
            .arg("--tls-private-key-file")
            .arg(&certificates.server_key)
            .arg("--token-auth-file")
            .arg(folder.path.join("tokens.csv"))
            .arg("--cert-dir")
            .arg(folder.path.join("certificates"));
        let server =
            Process::start(server, &folder.path.join("kube-apiserver.log")).expect("the API server starts");
        let client = client_at(&url(ip), certificates, Some(&User::admin()));
        wait::until("the API server is ready", wait::LONG, || async {
            if let Some(status) = server.end() {
                panic!("the API server ended, {status}: {}", folder.log("kube-apiserver.log"));
            }
            let ask = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            client.request_text(ask).await.ok().filter(|answer| answer == "ok").map(drop)
        })
        .await;
        // Made in the background after readiness; whatever is applied goes there.
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(client);
        wait::until("there is a namespace", wait::SHORT, || async {
            namespaces.get_opt("default").await.ok().flatten().map(drop)
        })
        .await;
        *locked(&self.api_server) = Some(server);
    }

    fn start_controllers(&self) {
        let mut manager = command(&self.programs.join("kube-controller-manager"));
        manager
            .arg("--kubeconfig")
            .arg(self.write_kubeconfig("controllers", &User::controllers(), &url(self.address.ip())))
            .arg(format!("--controllers={CONTROLLERS}"))
            // Not reachable, and alone.
            .args(["--leader-elect=false", "--port=0", "--secure-port=0"])
            // Of a real cluster's size, its own limits of requests would be what tests measure.
            .args(["--kube-api-qps=500", "--kube-api-burst=500"]);
        let log = self.folder.path.join("kube-controller-manager.log");
        let manager = Process::start(manager, &log).expect("the controller manager starts");
        *locked(&self.controllers) = Some(manager);
    }
}

fn url(ip: Ipv4Addr) -> String {
    format!("https://{ip}:{API_PORT}")
}

fn client_at(url: &str, certificates: &Certificates, user: Option<&User>) -> Client {
    let mut config = Config::new(url.parse().expect("a URL"));
    config.root_cert = Some(vec![certificates.authority_der.clone()]);
    config.auth_info.token = user.map(|user| user.token().into());
    Client::try_from(config).expect("a client")
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(locked(&self.controllers).take());
        drop(locked(&self.api_server).take());
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
const API_PORT: u16 = 6443;
const BRIDGE_PORT: u16 = 6080;

/// Those that make, count and remove what the operator and its users apply.
const CONTROLLERS: &str = "statefulset,deployment,replicaset,garbagecollector,namespace,disruption";

/// A folder of the test's own. A test that fails keeps it, and says where it is.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> Self {
        let folder = tempfile::Builder::new().prefix("kvcache-kube-").tempdir().expect("a temporary folder");
        Self { path: folder.keep() }
    }

    /// The end of a log.
    fn log(&self, name: &str) -> String {
        let text = std::fs::read(self.path.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(LOG_LINES_MAX).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

const LOG_LINES_MAX: usize = 20;

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the logs of the control plane and of all pods are in {}", self.path.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
