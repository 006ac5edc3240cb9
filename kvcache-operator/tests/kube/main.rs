//! The operator's surroundings as they are: a real etcd, API server and controller manager, and real cache servers as pods.
//!
//! `make test-kube` makes the control plane, once, and names it in `KUBE_BIN`. Where that is not set, the tests say that they
//! were skipped.

#![forbid(unsafe_code)]

mod bridge;
mod certificates;
mod control_plane;
mod crd;
mod kubelet;
mod loopback;
mod objects;
mod planned;
mod process;
mod ring_load;
mod servers;
mod surroundings;
mod wait;
