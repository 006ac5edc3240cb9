//! A kubelet whose containers are processes on this machine, each at a loopback address of its own.
//!
//! It takes every pod of a namespace, as scheduler and node in one: binds it, runs the program of its one container with the
//! container's own command line, asks its probes, and keeps its status. A deleted pod is ended as a kubelet does it:
//! preStop, SIGTERM, patience, SIGKILL, and only then is the object gone. Tests make it do what real nodes do to pods: kill
//! them, move them, freeze them, be slow.

mod invocation;
mod pod;
mod probe;
mod status;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub(crate) use invocation::{Image, Override, Programs};

/// Of all nodes.
const HOST_IP: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// What a test wants of its kubelet.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) namespace: String,
    pub(crate) node: String,
    pub(crate) programs: Programs,
    /// For every `kvcache serve`: a test machine has not the memory that a cluster's pods are given.
    pub(crate) overrides: Vec<Override>,
    /// No probe is asked less often.
    pub(crate) probe_period_max: Duration,
    /// Between a container's end and its next start; the first one comes at once.
    pub(crate) restart_delay: Duration,
    /// For the logs of the pods, one file each.
    pub(crate) folder: PathBuf,
}

impl Settings {
    /// Servers of 64 MiB that are asked four times a second. They share no memory with their clients: pods do not.
    pub(crate) fn new(namespace: &str, folder: PathBuf) -> Self {
        let with = |flag: &str, value: Option<&str>| Override {
            flag: flag.to_owned(),
            value: value.map(str::to_owned),
        };
        Self {
            namespace: namespace.to_owned(),
            node: "node-a".to_owned(),
            programs: Programs::from_env(),
            overrides: vec![with("--capacity", Some("64MiB")), with("--no-shared-memory", None)],
            probe_period_max: Duration::from_millis(250),
            restart_delay: Duration::from_millis(500),
            folder,
        }
    }
}

/// A pod as it is now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PodView {
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Where it serves, once it has started.
    pub(crate) ip: Option<Ipv4Addr>,
    /// Of its process, while there is one.
    pub(crate) pid: Option<i32>,
    pub(crate) restarts: u32,
    pub(crate) is_ready: bool,
}

/// How a pod that was deleted ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PodEnd {
    pub(crate) name: String,
    /// `None` if it did not end by itself in time, and was killed.
    pub(crate) exit_code: Option<i32>,
    pub(crate) took: Duration,
}

/// What a test does to a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Crash,
    Move,
    Freeze,
    Thaw,
}

/// Runs until it is dropped; then every process of its pods is killed.
pub(crate) struct Kubelet {
    shared: Arc<Shared>,
    workers: Option<tokio::task::JoinHandle<()>>,
}

struct Shared {
    client: Client,
    settings: Settings,
    pods: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Names of pods that are not ready, whatever their probes say.
    held: Mutex<BTreeSet<String>>,
    ends: Mutex<Vec<PodEnd>>,
}

/// A pod that is worked on, by its UID.
struct Entry {
    name: String,
    /// The object as last seen; `None` once it is gone.
    object: watch::Sender<Option<Arc<Pod>>>,
    orders: mpsc::UnboundedSender<Order>,
    view: Mutex<PodView>,
}

impl Kubelet {
    /// Registers the node and takes the namespace's pods from now on. The client may read pods, secrets and config
    /// maps, bind and delete pods, write their status and create nodes.
    pub(crate) async fn start(client: Client, settings: Settings) -> Self {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": settings.node, "labels": {"kubernetes.io/hostname": settings.node}},
        }))
        .expect("a node");
        match Api::all(client.clone()).create(&PostParams::default(), &node).await {
            Ok(_) => {}
            // Left by a kubelet before this one.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("the node cannot be registered: {error}"),
        }
        let shared = Arc::new(Shared {
            client,
            settings,
            pods: Mutex::default(),
            held: Mutex::default(),
            ends: Mutex::default(),
        });
        let workers = tokio::spawn(take_pods(Arc::clone(&shared)));
        Self { shared, workers: Some(workers) }
    }

    /// Its pods, by name.
    pub(crate) fn pods(&self) -> Vec<PodView> {
        let mut pods: Vec<_> =
            locked(&self.shared.pods).values().map(|entry| locked(&entry.view).clone()).collect();
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        pods
    }

    /// How deleted pods ended, in order.
    pub(crate) fn ends(&self) -> Vec<PodEnd> {
        locked(&self.shared.ends).clone()
    }

    /// Kills the pod's process; the container is restarted at the same address.
    pub(crate) fn crash(&self, pod: &str) {
        self.order(pod, Order::Crash);
    }

    /// Kills the pod's process and runs the same pod at another address, as after a restart of its node.
    pub(crate) fn move_to_another_address(&self, pod: &str) {
        self.order(pod, Order::Move);
    }

    /// Stops the pod's process without ending it: its connections stay, and nobody answers.
    pub(crate) fn freeze(&self, pod: &str) {
        self.order(pod, Order::Freeze);
    }

    /// Lets a frozen process go on.
    pub(crate) fn thaw(&self, pod: &str) {
        self.order(pod, Order::Thaw);
    }

    /// Holds the pod of this name, now or to come, not ready until `is_held` is said to be false.
    pub(crate) fn hold_readiness(&self, pod: &str, is_held: bool) {
        let mut held = locked(&self.shared.held);
        if is_held {
            held.insert(pod.to_owned())
        } else {
            held.remove(pod)
        };
    }

    /// Ends it and all its processes, and waits for that.
    pub(crate) async fn stop(mut self) {
        if let Some(workers) = self.workers.take() {
            workers.abort();
            let _ = workers.await;
        }
    }

    fn order(&self, pod: &str, order: Order) {
        let pods = locked(&self.shared.pods);
        let entry = pods.values().find(|entry| entry.name == pod);
        let entry = entry.unwrap_or_else(|| panic!("there is no pod {pod} to {order:?}"));
        entry.orders.send(order).unwrap_or_else(|_| panic!("pod {pod} has just ended"));
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.abort();
        }
    }
}

/// Follows the namespace's pods, one task for each. Dropping this drops these.
async fn take_pods(shared: Arc<Shared>) {
    let pods = Api::<Pod>::namespaced(shared.client.clone(), &shared.settings.namespace);
    let mut events = watcher(pods, watcher::Config::default()).default_backoff().boxed();
    let mut workers = JoinSet::new();
    let mut listed = BTreeSet::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            Some(ended) = workers.join_next() => {
                if let Err(error) = ended { eprintln!("kubelet: a pod's task failed: {error}") }
                continue;
            }
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(pod))) => {
                listed.extend(pod.uid());
                shared.seen(pod, &mut workers);
            }
            Some(Ok(Event::InitDone)) => {
                let pods = locked(&shared.pods);
                let gone = pods.iter().filter(|(uid, _)| !listed.contains(*uid));
                gone.for_each(|(_, entry)| drop(entry.object.send_replace(None)));
            }
            Some(Ok(Event::Apply(pod))) => shared.seen(pod, &mut workers),
            Some(Ok(Event::Delete(pod))) => {
                if let Some(entry) = pod.uid().and_then(|uid| locked(&shared.pods).get(&uid).cloned()) {
                    entry.object.send_replace(None);
                }
            }
            // The API server is away: it is asked again.
            Some(Err(_)) => {}
            None => return,
        }
    }
}

impl Shared {
    fn seen(self: &Arc<Self>, pod: Pod, workers: &mut JoinSet<()>) {
        let Some(uid) = pod.uid() else { return };
        let name = pod.name_any();
        let pod = Arc::new(pod);
        let mut pods = locked(&self.pods);
        if let Some(entry) = pods.get(&uid) {
            entry.object.send_replace(Some(pod));
            return;
        }
        let (object, objects) = watch::channel(Some(Arc::clone(&pod)));
        let (orders, ordered) = mpsc::unbounded_channel();
        let view = Mutex::new(PodView { name: name.clone(), uid: uid.clone(), ..PodView::default() });
        let entry = Arc::new(Entry { name, object, orders, view });
        pods.insert(uid.clone(), Arc::clone(&entry));
        let shared = Arc::clone(self);
        workers.spawn(async move {
            pod::Worker::new(Arc::clone(&shared), entry, pod, objects, ordered).live().await;
            locked(&shared.pods).remove(&uid);
        });
    }

    fn is_held(&self, pod: &str) -> bool {
        locked(&self.held).contains(pod)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
