//! The `KVCache` resource: AIBrix's, accepted unchanged, with one optional block of ours.

mod conditions;
mod kvcache;
mod names;
mod runtime_spec;
mod schema;
mod server_spec;
mod status;

pub use conditions::{ConditionType, Reason};
pub use kvcache::{ExternalConnection, KVCache, KVCacheSpec, MetadataSpec, MetadataStore, ServiceSpec};
pub use names::{annotation, label};
pub use runtime_spec::RuntimeSpec;
pub use server_spec::{RingSpec, ServerSpec};
pub use status::KVCacheStatus;
