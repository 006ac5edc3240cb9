//! Where L2 is and how it is used.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use kvcache_core::planner::{Ingestion, RemoteTierConfig};
use kvcache_core::ring_client::RingClientConfig;
use kvcache_core::store::{RemoteLink, SlotMemory};
use kvcache_rdma::members::{Members, RemoteUrl, Transport};
use kvcache_rdma::ring::{BackgroundThread, RdmaPort, RingConfig, RingPresence, RingStore};
use kvcache_rdma::tcp::TlsSettings;
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::planner::{value_error, wait};

/// L2 as both halves of the connector are told of it. Each connects for itself, from its own process.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct Remote {
    ring: RingConfig,
    tier: RemoteTierConfig,
    patience: Duration,
    in_flight: usize,
    /// The clients that were opened, for what is wrong with their servers.
    opened: Mutex<Vec<Weak<RingStore>>>,
}

#[pymethods]
impl Remote {
    #[new]
    #[pyo3(signature = (*, url, ingestion="all", replicas=1, token_file=None, tls_ca=None, tls_name=None, shared_memory=true, timeout_s=2.0,
                        fetch_wait_s=2.0, presence_wait_s=0.05, in_flight=32))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        url: &str,
        ingestion: &str,
        replicas: usize,
        token_file: Option<PathBuf>,
        tls_ca: Option<PathBuf>,
        tls_name: Option<String>,
        shared_memory: bool,
        timeout_s: f64,
        fetch_wait_s: f64,
        presence_wait_s: f64,
        in_flight: usize,
    ) -> PyResult<Self> {
        let ingestion = ingestion_of(ingestion)?;
        let mut ring = ring_config(url, token_file, tls_ca, tls_name)?;
        ring.client = RingClientConfig { replicas, ..ring.client };
        ring.shared_memory = shared_memory;
        let tier = RemoteTierConfig {
            ingestion,
            presence_wait: wait("presence_wait_s", presence_wait_s)?,
            fetch_wait: wait("fetch_wait_s", fetch_wait_s)?,
            demoting_max: in_flight.max(1) * 2,
            nonce: random(),
            ..RemoteTierConfig::default()
        };
        Ok(Self {
            ring,
            tier,
            patience: wait("timeout_s", timeout_s)?,
            in_flight: in_flight.max(1),
            opened: Mutex::default(),
        })
    }

    /// What is wrong now with the list of members and with the connections to them, one line each. May take a
    /// millisecond: not for the engine's thread.
    fn problems(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| {
            let opened: Vec<_> = self.opened.lock().iter().filter_map(Weak::upgrade).collect();
            problems_of(&self.ring.members, &opened)
        })
    }
}

impl Remote {
    pub(crate) fn tier(&self) -> RemoteTierConfig {
        self.tier.clone()
    }

    pub(crate) fn presence(&self) -> PyResult<Box<RingPresence>> {
        Ok(Box::new(RingPresence::open(&self.ring).map_err(value_error)?))
    }

    /// A rank's way to L2, for values in these slots. Its thread runs on `cpus`, as the rank's copies do.
    pub(crate) fn link(
        &self,
        namespace: [u8; 16],
        shard: [u8; 16],
        slots: Arc<dyn SlotMemory>,
        cpus: Vec<usize>,
    ) -> PyResult<RemoteLink> {
        // The thread that opens it is an engine's, which may be bound to the cores that compute.
        let background = Some(BackgroundThread { cpus, ..BackgroundThread::default() });
        let ring = RingConfig { background, ..self.ring.clone() };
        let store = open_store(&ring, slots)?;
        self.opened.lock().push(Arc::downgrade(&store));
        Ok(RemoteLink {
            store,
            namespace: Namespace(namespace),
            shard: ShardFingerprint(shard),
            patience: self.patience,
            in_flight_max: self.in_flight,
        })
    }
}

/// A client whose values lie in these slots.
pub(crate) fn open_store(ring: &RingConfig, slots: Arc<dyn SlotMemory>) -> PyResult<Arc<RingStore>> {
    let store = RingStore::open(ring).map_err(value_error)?;
    // SAFETY: the slots are those of a slab, which is mapped as long as they live.
    unsafe { store.register(slots) }.map_err(|error| {
        PyValueError::new_err(format!(
            "cannot start the thread that registers L1: {error}; raise the limit of threads"
        ))
    })?;
    Ok(Arc::new(store))
}

/// What is wrong now with a list of members, and with the connections of these clients to them.
pub(crate) fn problems_of(members: &Members, opened: &[Arc<RingStore>]) -> Vec<String> {
    let refused = members.status().last_error;
    let mut problems: Vec<String> =
        refused.map(|error| format!("the list of servers cannot be read: {error}")).into_iter().collect();
    let stats: Vec<_> = opened.iter().map(|store| store.stats()).collect();
    if stats.iter().any(|stats| stats.died) {
        problems.push(
            "the client's thread has ended by an error of its own: L2 is not used until a restart".to_owned(),
        );
    }
    for stats in stats {
        problems.extend(stats.rdma_problem.map(|why| format!("L1 cannot be registered for RDMA: {why}")));
        for (address, connection) in stats.connections.into_values() {
            problems.extend(connection.problem().map(|fault| format!("server {address}: {fault}")));
        }
    }
    problems.sort_unstable();
    problems.dedup();
    problems
}

/// Which blocks go to L2, by name.
pub(crate) fn ingestion_of(name: &str) -> PyResult<Ingestion> {
    match name {
        "all" => Ok(Ingestion::All),
        "hot" => Ok(Ingestion::Hot),
        "evicted" => Ok(Ingestion::Evicted),
        _ => Err(PyValueError::new_err(format!(
            "unknown ingestion {name:?}: use \"all\", \"hot\" or \"evicted\""
        ))),
    }
}

/// How the servers of a URL are reached.
pub(crate) fn ring_config(
    url: &str,
    token_file: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    tls_name: Option<String>,
) -> PyResult<RingConfig> {
    let parsed: RemoteUrl = url.parse().map_err(value_error)?;
    let transport = parsed.transport;
    let members = Members::open(&parsed, random()).map_err(value_error)?;
    let mut ring = RingConfig::new(members);
    match transport {
        Transport::Tcp => {}
        Transport::Tls => {
            let Some(ca_file) = tls_ca else {
                return Err(PyValueError::new_err(
                    "remote asks for TLS and tls_ca is missing: give a PEM file with the certificates that sign the servers'",
                ));
            };
            ring.tls = Some(TlsSettings { ca_file, server_name: tls_name });
        }
        Transport::Rdma => {
            ring.rdma = Some(RdmaPort::Wish(parsed.rdma));
        }
    }
    if let Some(path) = token_file {
        let text = std::fs::read_to_string(&path).map_err(|error| {
            PyValueError::new_err(format!(
                "cannot read the token file {}: {error}; give a file with the servers' token, or leave it out for servers that \
                 have none",
                path.display()
            ))
        })?;
        ring.token = text.trim_matches(|character: char| character.is_ascii_whitespace()).to_owned();
        if ring.token.is_empty() {
            return Err(PyValueError::new_err(format!(
                "the token file {} is empty: put the servers' token into it, or leave it out for servers that have none",
                path.display()
            )));
        }
    }
    Ok(ring)
}

/// A number that no other process draws.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
