//! The `KVCache` resource: AIBrix's, accepted unchanged, with one optional block of ours.

mod accept;
mod accepted;
mod backend;
mod conditions;
mod kvcache;
mod names;
mod quantity;
mod refusal;
mod runtime_spec;
mod schema;
mod server_spec;
mod status;

pub use accept::{accept, ring_options};
pub use accepted::{
    Accepted, InfiniStoreLink, Metadata, Options, Pods, Ports, PullPolicy, REDIS_PORT, Rdma, RedisRuntime,
    RingOptions, SecretKey, ServerPod, Workload,
};
pub use backend::{Backend, UnknownBackend};
pub use conditions::{ConditionType, Reason};
pub use kvcache::{ExternalConnection, KVCache, KVCacheSpec, MetadataSpec, MetadataStore, ServiceSpec};
pub use names::{annotation, label};
pub use refusal::{Problem, Refusal};
pub use runtime_spec::RuntimeSpec;
pub use server_spec::{RingSpec, ServerSpec};
pub use status::KVCacheStatus;
