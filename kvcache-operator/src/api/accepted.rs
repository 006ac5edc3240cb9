//! A cache as the rest of the operator sees it: what was asked for with every default filled in, checked once.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EnvVar, PodTemplateSpec, ResourceRequirements, ServicePort};
use serde::{Deserialize, Serialize};

use super::Backend;

/// What the operator's flags say about all caches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Backends that are served besides [`Backend::KvCache`].
    pub adopt: BTreeSet<Backend>,
    /// Image of `kvcache serve` where a cache names none.
    pub server_image: String,
    /// Image of Redis where a cache asks for one and names none.
    pub redis_image: String,
}

/// A cache that can be served. Made by [`accept`](super::accept) alone.
#[derive(Clone, PartialEq, Debug)]
pub struct Accepted {
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name: at most 46 letters, digits and dashes.
    pub name: String,
    /// The resource's unique id, for owner references.
    pub uid: String,
    /// The generation of the spec that was read.
    pub generation: i64,
    /// What runs.
    pub backend: Backend,
    /// The servers.
    pub workload: Workload,
    /// Where the servers listen.
    pub ports: Ports,
    /// Ports of the headless service: at least one, each with a protocol and a target.
    pub service_ports: Vec<ServicePort>,
    /// Where the ring is published besides its ConfigMap.
    pub metadata: Metadata,
    /// How the ring follows the pods.
    pub ring: RingOptions,
    /// What was asked for and has no effect, in sentences for an event.
    pub notes: Vec<String>,
}

/// The cache servers.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    /// How many: 0 to 4096. Without any the ring is published empty, and engines go on with what they have.
    pub replicas: u32,
    /// Their pods.
    pub pods: Pods,
}

/// How pods are made.
#[derive(Clone, PartialEq, Debug)]
pub enum Pods {
    /// By the operator.
    Built(Box<ServerPod>),
    /// By the user, to the last field. The operator adds its labels and nothing else; the template's server listens
    /// where [`Ports`] says.
    Template(Box<PodTemplateSpec>),
}

/// A server's pod as the operator makes it.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerPod {
    /// The image.
    pub image: String,
    /// When it is pulled.
    pub pull_policy: PullPolicy,
    /// The user's environment: each name once, empty values left out as the API server does.
    pub env: Vec<EnvVar>,
    /// The user's requests and limits, quantities in Kubernetes' canonical form.
    pub resources: ResourceRequirements,
    /// Memory for blocks, in bytes. InfiniStore's are whole GiB.
    pub capacity_bytes: u64,
    /// Memory that is left for everything else, in bytes; the limit less the capacity where there is a limit.
    pub headroom_bytes: u64,
    /// Size of the pod's `/dev/shm`, in bytes, where the server wants one.
    pub shared_memory_bytes: Option<u64>,
    /// What RDMA needs, where an RDMA device is among the limits.
    pub rdma: Option<Rdma>,
    /// What InfiniStore is told about its link, with or without a device.
    pub infinistore: InfiniStoreLink,
}

/// When an image is pulled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// Where the node lacks it.
    #[default]
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// Kubernetes' word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// RDMA devices of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rdma {
    /// The resource that was asked for, as in `vke.volcengine.com/rdma`.
    pub resource: String,
    /// Value of the pod's annotation `k8s.volcengine.com/pod-networks`, where it gets one.
    pub pod_networks: Option<String>,
}

/// InfiniStore's link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfiniStoreLink {
    /// `Ethernet` or `IB`.
    pub link_type: String,
    /// Index of the GID; -1 lets the server choose.
    pub gid_index: i32,
}

/// Where servers listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// For clients, as the ring has it.
    pub serve: u16,
    /// For management and metrics over HTTP.
    pub manage: u16,
}

/// The store that AIBrix's engines read the ring from.
#[derive(Clone, PartialEq, Debug)]
pub enum Metadata {
    /// None: the ring is in its ConfigMap alone.
    None,
    /// A Redis that somebody else runs.
    External {
        /// Its host; an IPv6 address has no brackets.
        host: String,
        /// Its port.
        port: u16,
        /// Where its password is, if it has one.
        password: Option<SecretKey>,
    },
    /// A Redis that the operator runs, reached at `<name>-redis` and [`REDIS_PORT`].
    InCluster(Box<RedisRuntime>),
}

/// The port of a Redis that the operator runs.
pub const REDIS_PORT: u16 = 6379;

/// A Redis that the operator runs.
#[derive(Clone, PartialEq, Debug)]
pub struct RedisRuntime {
    /// The image; left aside by a template.
    pub image: String,
    /// When it is pulled.
    pub pull_policy: PullPolicy,
    /// The user's environment.
    pub env: Vec<EnvVar>,
    /// The user's requests and limits.
    pub resources: ResourceRequirements,
    /// The user's whole pod, instead of the above.
    pub template: Option<PodTemplateSpec>,
    /// Where its password is: from the variable `REDIS_PASSWORD` of the environment.
    pub password: Option<SecretKey>,
}

/// A key of a Secret in the cache's namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SecretKey {
    /// The Secret's name.
    pub secret: String,
    /// The key in it.
    pub key: String,
}

/// How the ring follows the pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingOptions {
    /// How long a pod is ready before it gets slots.
    pub min_ready: Duration,
    /// How long a pod that is not ready, restarts or is gone keeps its slots.
    pub not_ready_grace: Duration,
    /// The key in Redis.
    pub redis_key: String,
}
