//! Labels and annotations, by their full names.

/// Labels of objects and pods.
pub mod label {
    /// The cache's name: on every object of it.
    pub const NAME: &str = "kvcache.orchestration.aibrix.ai/name";
    /// The role of a pod: `cache` or `metadata`.
    pub const ROLE: &str = "kvcache.orchestration.aibrix.ai/role";
}

/// Annotations of a `KVCache`, and one of its pods.
pub mod annotation {
    /// On a pod, with the value `true`: it leaves the ring at once and does not come back while it has this.
    pub const DRAIN: &str = "kvcache.orchestration.aibrix.ai/drain";
    /// The backend: `kvcache`, or one of AIBrix's.
    pub const BACKEND: &str = "kvcache.orchestration.aibrix.ai/backend";
    /// AIBrix's deprecated mode. Never decides.
    pub const MODE: &str = "kvcache.orchestration.aibrix.ai/mode";
    /// Link type of InfiniStore's RDMA: `Ethernet` or `IB`.
    pub const INFINISTORE_LINK_TYPE: &str = "infinistore.kvcache.orchestration.aibrix.ai/link-type";
    /// GID index of InfiniStore's RDMA; -1 lets the server choose.
    pub const INFINISTORE_GID_INDEX: &str = "infinistore.kvcache.orchestration.aibrix.ai/hint-gid-index";
    /// Networks of a pod with RDMA devices of Volcano Engine, passed through to pods.
    pub const POD_NETWORKS: &str = "k8s.volcengine.com/pod-networks";

    /// Whether an annotation of a `KVCache` may mean something here; most are of others.
    pub fn is_read(key: &str) -> bool {
        key.contains("aibrix.ai/") || key.contains("volcengine.com/")
    }
}
