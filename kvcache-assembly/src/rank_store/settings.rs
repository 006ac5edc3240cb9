//! What a rank is told of itself, and how its parts are put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kvcache_core::copy_engine::drill::{Drill, DrillEngine};
use kvcache_core::copy_engine::{CopyEngine, HostCopyConfig, HostCopyEngine};
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use kvcache_core::slab::{SharedBacking, SlabConfig};
use kvcache_core::store::{EngineLayout, LayerBinding, PinnedSlots, RankSlots, Store, StoreConfig};
use parking_lot::Mutex;

use super::{Opened, RankStore};
use crate::cuda::{CudaDevice, check_path};
use crate::{Error, Remote, capacity, slab_folder};

/// What an engine says of one of its ranks.
#[derive(Clone, PartialEq, Debug)]
pub struct RankStoreSettings {
    /// This rank in the engine's world.
    pub rank: u32,
    /// Ranks in all, among which the capacity is shared out.
    pub ranks: u32,
    /// The rank whose slab this one uses: itself, unless ranks hold the same bytes.
    pub leader: u32,
    /// Ranks that hold the same bytes as this one, itself included.
    pub copies: u32,
    /// Where the engine's blocks are, layer by layer.
    pub layers: Vec<LayerBinding>,
    /// Engine blocks in a slot.
    pub slot_blocks: usize,
    /// Host memory for the blocks of all ranks together.
    pub capacity_bytes: u64,
    /// Fingerprint of what all ranks share.
    pub namespace: [u8; 16],
    /// Fingerprint of what this rank's bytes depend on.
    pub shard: [u8; 16],
    /// Directory in shared memory in which the blocks outlive the engine.
    pub slab_dir: Option<PathBuf>,
    /// Tells engines of one namespace on one machine apart.
    pub engine_id: String,
    /// The process whose end frees the slab for others.
    pub owner_pid: u32,
    /// Threads that copy beside the caller, where no device does.
    pub copy_threads: usize,
    /// CPUs that they, and the thread of L2, run on; empty for any.
    pub copy_cpus: Vec<usize>,
    /// Layers that a layer-wise load may run ahead.
    pub layers_ahead: usize,
    /// Whether blocks in host memory carry a checksum that is verified when they are loaded.
    pub verify_l1: bool,
    /// Faults to rehearse, as [`Drill`] reads them; empty for none.
    pub drill: String,
    /// `cuda:N` for an engine that computes there.
    pub device: Option<String>,
    /// With the drill `fake_cuda`: address and bytes of each of the engine's tensors.
    pub device_memory: Vec<(usize, usize)>,
    /// How a device copies; `auto` measures.
    pub copy_path: String,
}

impl RankStoreSettings {
    /// The only rank of an engine on the CPU, in private memory, with two threads that copy.
    pub fn new(layers: Vec<LayerBinding>, slot_blocks: usize, capacity_bytes: u64) -> Self {
        Self {
            rank: 0,
            ranks: 1,
            leader: 0,
            copies: 1,
            layers,
            slot_blocks,
            capacity_bytes,
            namespace: Namespace::of_text("").0,
            shard: ShardFingerprint::of_fields([]).0,
            slab_dir: None,
            engine_id: std::process::id().to_string(),
            owner_pid: std::process::id(),
            copy_threads: 2,
            copy_cpus: Vec::new(),
            layers_ahead: StoreConfig::default().layers_ahead,
            verify_l1: false,
            drill: String::new(),
            device: None,
            device_memory: Vec::new(),
            copy_path: "auto".to_owned(),
        }
    }

    /// Opens the store, with a way to L2 if there is one. Takes milliseconds: memory is taken and pinned in the background.
    /// A CUDA device adds what measuring it takes.
    ///
    /// # Errors
    /// What cannot be meant, with its remedy, or what the system or the device refuses.
    pub fn open(self, remote: Option<&Remote>) -> Result<RankStore, Error> {
        let drill: Drill = self.drill.parse()?;
        let layout = EngineLayout::new(self.layers.clone(), self.slot_blocks)?;
        let slot_count = self.slot_count(layout.slot_bytes())?;
        check_path(&self.copy_path)?;
        let folder_warning = self.slab_dir.as_deref().map(slab_folder::check).transpose()?.flatten();
        let device = match &self.device {
            _ if drill.fake_cuda => {
                Some(CudaDevice::open_fake(&self.device_memory, &self.copy_path, self.rank.into())?)
            }
            Some(name) => Some(CudaDevice::open(name, &self.copy_path)?),
            None => None,
        };
        let mut slab = self.slab_config(layout.slot_bytes(), slot_count);
        slab.numa_node = device.as_ref().and_then(|device| device.numa_node);
        slab.for_device = device.is_some();
        let slots = RankSlots::open(&slab, self.rank != self.leader, self.verify_l1).map_err(Error::Slab)?;
        let cuda = device.as_ref().map(|device| Arc::clone(&device.engine));
        let copies: Arc<dyn CopyEngine> = match &cuda {
            Some(cuda) => Arc::clone(cuda) as _,
            None => Arc::new(self.host_copies()?),
        };
        let (copies, drilled) = if drill.changes_copies() {
            let drilled = Arc::new(DrillEngine::new(copies, drill).map_err(Error::Thread)?);
            (Arc::clone(&drilled) as Arc<dyn CopyEngine>, Some(drilled))
        } else {
            (copies, None)
        };
        let memory = slots.memory();
        let pinned = match &cuda {
            Some(_) => {
                let pinned = PinnedSlots::new(Arc::clone(&memory), Arc::clone(&copies));
                Some(Arc::new(pinned.map_err(Error::Thread)?))
            }
            None => None,
        };
        let memory = pinned.as_ref().map_or(memory, |pinned| Arc::clone(pinned) as _);
        let config = StoreConfig {
            rank: self.rank,
            copy_threads: self.copy_threads as u32,
            layers_ahead: self.layers_ahead,
            skip_copies: drill.claim_hits_load_nothing,
            timeline: drill.timeline,
            ..StoreConfig::default()
        };
        let mut store = Store::new(config, layout, memory, copies);
        if let Some(remote) = remote {
            let (namespace, shard) = (Namespace(self.namespace), ShardFingerprint(self.shard));
            store = store.with_remote(remote.link(namespace, shard, &slots, self.copy_cpus)?);
        }
        Ok(RankStore {
            opened: Mutex::new(Some(Opened { store, pinned, cuda })),
            slots,
            folder_warning,
            fake: device.and_then(|device| device.fake),
            copy_threads: self.copy_threads,
            drilled,
            since: Instant::now(),
        })
    }

    /// Slots of this rank's share.
    fn slot_count(&self, slot_bytes: usize) -> Result<usize, Error> {
        let capacity_bytes = self.capacity_bytes;
        // Ranks that hold copies of the same bytes share what one of them stores.
        let shards = self.ranks.max(1).div_ceil(self.copies.max(1));
        let slots = capacity::slot_count(capacity_bytes, shards, slot_bytes)?;
        if slots == 0 {
            return Err(Error::CapacityBelowSlot { capacity_bytes, slot_bytes, shards });
        }
        Ok(usize::try_from(slots).unwrap_or(usize::MAX))
    }

    fn slab_config(&self, slot_bytes: usize, slot_count: usize) -> SlabConfig {
        let shared = (self.copies > 1).then(|| SHARED_MEMORY.into());
        match self.slab_dir.clone().or(shared) {
            None => SlabConfig::anonymous(slot_bytes, slot_count),
            Some(directory) => {
                let mut backing = SharedBacking::new(directory, self.namespace, self.shard);
                backing.rank = self.leader;
                backing.replicas = self.copies.saturating_sub(1);
                backing.lasting = self.slab_dir.is_some();
                backing.engine_id = self.engine_id.clone();
                backing.owner_pid = self.owner_pid;
                SlabConfig::shared(slot_bytes, slot_count, backing)
            }
        }
    }

    fn host_copies(&self) -> Result<HostCopyEngine, Error> {
        let threads = self.copy_threads;
        let config = HostCopyConfig { threads, cpus: self.copy_cpus.clone(), ..HostCopyConfig::default() };
        HostCopyEngine::new(config).map_err(|source| Error::CopyThreads { threads, source })
    }
}

/// Where ranks share a slab that no restart needs.
const SHARED_MEMORY: &str = "/dev/shm";
