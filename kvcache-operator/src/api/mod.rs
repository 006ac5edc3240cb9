//! The `KVCache` resource: AIBrix's, accepted unchanged, with one optional block of ours.

mod accept;
mod accepted;
mod as_written;
mod backend;
mod conditions;
mod kvcache;
mod names;
mod quantity;
mod refusal;
mod rules;
mod runtime_spec;
mod schema;
mod server_spec;
mod status;

pub(crate) use accept::{MANAGE_PORT_NAME, REDIS_PASSWORD, SERVE_PORT_NAME, SERVER_CONTAINER, is_rdma};
pub use accept::{accept, ring_options};
pub use accepted::{
    Accepted, InfiniStoreLink, Metadata, Options, Pods, Ports, PullPolicy, REDIS_PORT, Rdma, RedisRuntime,
    RingOptions, SecretKey, ServerPod, Workload,
};
pub use as_written::{AsWritten, AskedFor};
pub use backend::{Backend, UnknownBackend};
pub use conditions::{ConditionType, Reason};
pub use kvcache::{ExternalConnection, KVCache, KVCacheSpec, MetadataSpec, MetadataStore, ServiceSpec};
pub use names::{annotation, label};
pub(crate) use quantity::of_bytes;
#[cfg(test)]
pub(crate) use quantity::units;
pub use refusal::{Problem, Refusal};
pub use runtime_spec::RuntimeSpec;
pub use server_spec::{RingSpec, ServerSpec};
pub use status::KVCacheStatus;
