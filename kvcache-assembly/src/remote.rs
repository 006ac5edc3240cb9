//! Where L2 is and how it is used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvcache_core::block_cache::L2Config;
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use kvcache_core::planner::{Ingestion, RemoteTierConfig};
use kvcache_core::ring_client::RingClientConfig;
use kvcache_core::store::{RankSlots, RemoteLink, SlotMemory};
use kvcache_rdma::members::{Members, RemoteUrl, Transport};
use kvcache_rdma::ring::{BackgroundThread, RdmaPort, RingConfig, RingPresence, RingStore};
use kvcache_rdma::tcp::TlsSettings;
use parking_lot::Mutex;

use crate::Error;
use crate::value_memory::open_store;

/// What a user says of L2. Times are in seconds.
#[derive(Clone, PartialEq, Debug)]
pub struct RemoteSettings {
    /// The servers, as [`RemoteUrl`] reads them.
    pub url: String,
    /// Which blocks go there: `all`, `hot` or `evicted`.
    pub ingestion: String,
    /// Servers that hold each value.
    pub replicas: usize,
    /// A file with what the servers ask for before they serve.
    pub token_file: Option<PathBuf>,
    /// A PEM file with the certificates that sign the servers', for TLS.
    pub tls_ca: Option<PathBuf>,
    /// The name in the servers' certificates, where it is not that of their addresses.
    pub tls_name: Option<String>,
    /// Whether values of servers on this host are copied from and to their memory instead of being sent.
    pub shared_memory: bool,
    /// How long a value may take.
    pub timeout_s: f64,
    /// The longest a request of a connector waits for blocks on their way. A block cache's calls wait for them anyway.
    pub fetch_wait_s: f64,
    /// How long it may take to hear what is there.
    pub presence_wait_s: f64,
    /// Values in flight at most, of one rank; twice as many may wait to go to L2.
    pub in_flight: usize,
}

impl RemoteSettings {
    /// Every block, to one server each; 2 s for a value, 50 ms to hear what is there, 32 values in flight.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ingestion: "all".to_owned(),
            replicas: 1,
            token_file: None,
            tls_ca: None,
            tls_name: None,
            shared_memory: true,
            timeout_s: 2.0,
            fetch_wait_s: 2.0,
            presence_wait_s: 0.05,
            in_flight: 32,
        }
    }

    /// Reads the settings and begins to watch the list of servers. Connects to none yet.
    ///
    /// # Errors
    /// What cannot be meant, with its remedy. Servers that cannot be reached are no error: see [`Remote::problems`].
    pub fn open(&self) -> Result<Remote, Error> {
        let ingestion = ingestion_of(&self.ingestion)?;
        let mut ring = self.ring_config()?;
        ring.client = RingClientConfig { replicas: self.replicas, ..ring.client };
        ring.shared_memory = self.shared_memory;
        let in_flight = self.in_flight.max(1);
        let tier = RemoteTierConfig {
            ingestion,
            presence_wait: seconds("presence_wait_s", self.presence_wait_s)?,
            fetch_wait: seconds("fetch_wait_s", self.fetch_wait_s)?,
            demoting_max: in_flight.saturating_mul(2),
            nonce: random(),
            ..RemoteTierConfig::default()
        };
        let patience = seconds("timeout_s", self.timeout_s)?;
        Ok(Remote { ring, tier, patience, in_flight, opened: Mutex::default() })
    }

    /// How the servers are reached.
    fn ring_config(&self) -> Result<RingConfig, Error> {
        let url: RemoteUrl = self.url.parse()?;
        let mut ring = RingConfig::new(Members::open(&url, random())?);
        match url.transport {
            Transport::Tcp => {}
            Transport::Tls => {
                let ca_file = self.tls_ca.clone().ok_or(Error::NoTlsCa)?;
                ring.tls = Some(TlsSettings { ca_file, server_name: self.tls_name.clone() });
            }
            Transport::Rdma => ring.rdma = Some(RdmaPort::Wish(url.rdma)),
        }
        if let Some(path) = &self.token_file {
            ring.token = token_in(path)?;
        }
        Ok(ring)
    }
}

/// L2 as both halves of a connector, or a block cache, are told of it. What it opens connects for itself, so that the halves
/// may be in processes of their own.
pub struct Remote {
    ring: RingConfig,
    tier: RemoteTierConfig,
    patience: Duration,
    in_flight: usize,
    /// The clients that were opened, for what is wrong with their servers.
    opened: Mutex<Vec<Weak<RingStore>>>,
}

impl Remote {
    /// How a planner uses it.
    pub fn tier(&self) -> RemoteTierConfig {
        self.tier.clone()
    }

    /// What asks the servers which blocks they have.
    ///
    /// # Errors
    /// A setting that the client refuses, or no thread.
    pub fn presence(&self) -> Result<Box<RingPresence>, Error> {
        Ok(Box::new(RingPresence::open(&self.ring)?))
    }

    /// A rank's way to L2, for values in these slots. Its thread runs on `cpus`, as the rank's copies do.
    ///
    /// # Errors
    /// A setting that the client refuses, or no thread.
    pub fn link(
        &self,
        namespace: Namespace,
        shard: ShardFingerprint,
        slots: &RankSlots,
        cpus: Vec<usize>,
    ) -> Result<RemoteLink, Error> {
        // The thread that opens it is an engine's, which may be bound to the cores that compute.
        let background = Some(BackgroundThread { cpus, ..BackgroundThread::default() });
        let ring = RingConfig { background, ..self.ring.clone() };
        Ok(RemoteLink {
            store: self.open_store(&ring, slots.memory())?,
            namespace,
            shard,
            patience: self.patience,
            in_flight_max: self.in_flight,
        })
    }

    /// A block cache's way to L2, for values in its own slots, which are those of a slab.
    pub(crate) fn store(&self, slots: Arc<dyn SlotMemory>) -> Result<Arc<RingStore>, Error> {
        self.open_store(&self.ring, slots)
    }

    /// How a block cache with blocks of `block_bytes` uses it.
    pub(crate) fn l2_config(&self, namespace: Namespace, block_bytes: usize) -> L2Config {
        L2Config {
            ingestion: self.tier.ingestion,
            match_timeout: self.tier.presence_wait,
            fetch_timeout: self.patience,
            demotions_max: self.tier.demoting_max.max(DEMOTING_BYTES / block_bytes.max(1)),
            ..L2Config::new(namespace)
        }
    }

    fn open_store(&self, ring: &RingConfig, slots: Arc<dyn SlotMemory>) -> Result<Arc<RingStore>, Error> {
        let store = open_store(ring, slots)?;
        self.opened.lock().push(Arc::downgrade(&store));
        Ok(store)
    }

    /// What is wrong now with the list of members and with the connections to them, one line each. May take a
    /// millisecond: not for the engine's thread.
    pub fn problems(&self) -> Vec<String> {
        let opened: Vec<_> = self.opened.lock().iter().filter_map(Weak::upgrade).collect();
        problems_of(&self.ring.members, &opened)
    }
}

fn problems_of(members: &Members, opened: &[Arc<RingStore>]) -> Vec<String> {
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
///
/// # Errors
/// [`Error::Ingestion`].
pub fn ingestion_of(name: &str) -> Result<Ingestion, Error> {
    match name {
        "all" => Ok(Ingestion::All),
        "hot" => Ok(Ingestion::Hot),
        "evicted" => Ok(Ingestion::Evicted),
        _ => Err(Error::Ingestion(name.to_owned())),
    }
}

fn token_in(path: &Path) -> Result<String, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::TokenFile { path: path.to_owned(), source })?;
    let token = text.trim_matches(|character: char| character.is_ascii_whitespace());
    if token.is_empty() {
        return Err(Error::EmptyTokenFile(path.to_owned()));
    }
    Ok(token.to_owned())
}

/// A setting in seconds.
///
/// # Errors
/// [`Error::Seconds`] for what is negative, not a number or longer than time is counted.
pub fn seconds(name: &'static str, seconds: f64) -> Result<Duration, Error> {
    let given = Duration::try_from_secs_f64(seconds).map_err(|_| Error::Seconds { name, seconds })?;
    // Added to the time of a clock it must be a time again.
    Ok(given.min(FOR_EVER))
}

/// 31 years.
const FOR_EVER: Duration = Duration::from_secs(1_000_000_000);

/// A number that no other process draws.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Small blocks on their way to L2 may be this many bytes in all; of large ones it is a number of blocks.
const DEMOTING_BYTES: usize = 64 << 20;
