//! The operator as it is deployed, in its surroundings as they are: a real etcd, API server and controller manager, real cache
//! servers as pods, and an engine's client that reads throughout.
//!
//! `make test-kube` makes the control plane, once, and names it in `KUBE_BIN`. Where that is not set, the tests say that they
//! were skipped.

#![forbid(unsafe_code)]

mod adoption;
mod bridge;
mod certificates;
mod control_plane;
mod crd;
mod edits;
mod engine;
mod handover;
mod kills;
mod kubelet;
mod life;
mod loopback;
mod manifests;
mod mounted_ring;
mod objects;
mod operator;
mod outages;
mod ownership;
mod planned;
mod process;
mod redis;
mod refused_writes;
mod ring_history;
mod ring_load;
mod rolling;
mod scaling;
mod servers;
mod surroundings;
mod wait;
mod world;
