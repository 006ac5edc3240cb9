//! The worker half of a connector: one rank's store, with everything that it was opened with.

mod settings;
mod slots;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kvcache_core::copy_engine::drill::DrillEngine;
use kvcache_core::copy_engine::{Direction, Ticket};
use kvcache_core::plan::StepPlan;
use kvcache_core::store::{Moment, PinnedSlots, RankSlots, SlotMemory, Store};
use kvcache_cuda::engine::CudaCopyEngine;
use parking_lot::Mutex;

use crate::Error;
use crate::cuda::FakeCuda;
use crate::device_problems::device_problems;
use crate::named_stats::{self, Number};

pub use settings::RankStoreSettings;

/// One rank's store.
///
/// Steps are for one thread at a time; everything may be called from any. What acts on the [`Store`] waits while another
/// call does, and is an error once it is [closed](Self::close).
pub struct RankStore {
    opened: Mutex<Option<Opened>>,
    slots: RankSlots,
    folder_warning: Option<String>,
    fake: Option<FakeCuda>,
    copy_threads: usize,
    drilled: Option<Arc<DrillEngine>>,
    since: Instant,
}

/// What is closed with the store.
struct Opened {
    store: Store,
    pinned: Option<Arc<PinnedSlots>>,
    cuda: Option<Arc<CudaCopyEngine>>,
}

/// A row of [`RankStore::timeline`]: what, which layer, and when it began and ended, in nanoseconds since the opening.
pub type TimelineRow = (&'static str, usize, u64, u64);

impl RankStore {
    /// Acts on the store. Waits while another call does.
    ///
    /// # Errors
    /// [`Error::StoreClosed`].
    pub fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> Result<T, Error> {
        match self.opened.lock().as_mut() {
            Some(opened) => Ok(act(&mut opened.store)),
            None => Err(Error::StoreClosed),
        }
    }

    /// A step begins. Whether it loads layer by layer, and whether it offloads. `stream` is the raw handle of the engine's
    /// stream, where it computes on a device.
    ///
    /// # Errors
    /// A plan that cannot be read, or [`Error::StoreClosed`].
    pub fn begin_step(&self, plan: &[u8], stream: Option<u64>) -> Result<(bool, bool), Error> {
        let plan = StepPlan::decode(plan)?;
        if let Some(drilled) = &self.drilled {
            drilled.arm();
        }
        self.with(|store| {
            store.begin_step(plan, stream);
            (store.has_layerwise_loads(), store.has_fresh_offloads())
        })
    }

    /// The forward pass is over; with `finish`, waits for every copy, and with `last`, ends everything between L1 and L2 as
    /// well. Whether anything is left in flight.
    ///
    /// # Errors
    /// [`Error::StoreClosed`].
    pub fn end_step(&self, finish: bool, last: bool, stream: Option<u64>) -> Result<bool, Error> {
        self.with(|store| {
            match (finish, last) {
                (_, true) => store.drain(stream),
                (true, false) => store.finish_copies(stream),
                (false, false) => store.end_step(stream),
            }
            store.is_busy()
        })
    }

    /// What was opened, for the log.
    pub fn describe(&self) -> String {
        let slots = slots::describe(&self.slots);
        match self.opened.lock().as_ref().and_then(|opened| opened.cuda.as_ref()) {
            None => format!("{slots}, {} copy threads", self.copy_threads),
            Some(cuda) => {
                let device = cuda.driver().device();
                let paths: Vec<_> = cuda.paths().iter().map(|path| path.name()).collect();
                format!("{slots}, copies by {} (cuda:{}): {}", device.name, device.ordinal, paths.join(", "))
            }
        }
    }

    /// What makes this rank's part of the cache slower or smaller than it could be, one line each, as long as it is so. Waits
    /// while another call acts on the store: not for the engine's thread.
    pub fn problems(&self) -> Vec<String> {
        let opened = self.opened.lock();
        let Some(Opened { store, pinned: Some(pinned), cuda: Some(cuda) }) = opened.as_ref() else {
            return Vec::new();
        };
        let slots = (pinned.usable_slots(), pinned.slot_count());
        device_problems(cuda, &pinned.pinning(), slots, store.failures())
    }

    /// What the user should know, one line each.
    pub fn warnings(&self) -> Vec<String> {
        self.folder_warning.iter().cloned().chain(self.slots.warnings()).collect()
    }

    /// The device that copies and the slots that it copies from and to; `None` for host copies, or after the end.
    pub fn device(&self) -> Option<(Arc<CudaCopyEngine>, Arc<PinnedSlots>)> {
        self.opened.lock().as_ref().and_then(|opened| opened.cuda.clone().zip(opened.pinned.clone()))
    }

    /// Drill `fake_cuda`: what stands in for a device.
    pub fn fake(&self) -> Option<&FakeCuda> {
        self.fake.as_ref()
    }

    /// Grows whenever [`numbers`](Self::numbers) may have changed.
    ///
    /// # Errors
    /// [`Error::StoreClosed`].
    pub fn activity(&self) -> Result<u64, Error> {
        self.with(|store| {
            let stats = store.stats();
            let remote = store.remote_stats().map_or(0, |stats| stats.activity());
            stats.loads + stats.offloads + remote
        })
    }

    /// Every count, by name.
    ///
    /// # Errors
    /// [`Error::StoreClosed`].
    pub fn numbers(&self) -> Result<Vec<Number>, Error> {
        let (stats, remote) = self.with(|store| (store.stats(), store.remote_stats()))?;
        let remote = remote.into_iter().flat_map(|stats| named_stats::store_l2(&stats));
        Ok(named_stats::store(&stats).into_iter().chain(remote).collect())
    }

    /// Drill `timeline`: what happened to layers; the first of a row is `wait`, `computed`, `load` or `offload`.
    ///
    /// # Errors
    /// [`Error::StoreClosed`].
    pub fn timeline(&self) -> Result<Vec<TimelineRow>, Error> {
        let log = self.drilled.as_ref().map(|drilled| drilled.log()).unwrap_or_default();
        let spans: HashMap<Ticket, (Instant, Instant)> =
            log.into_iter().map(|copied| (copied.ticket, (copied.began, copied.ended))).collect();
        let ns = |at: Instant| at.saturating_duration_since(self.since).as_nanos() as u64;
        self.with(|store| {
            let row = |moment: &Moment| match *moment {
                Moment::Waited { layer, began, ended } => Some(("wait", layer, ns(began), ns(ended))),
                Moment::Computed { layer, at } => Some(("computed", layer, ns(at), ns(at))),
                Moment::Copied { layer, direction, ticket } => {
                    let (began, ended) = spans.get(&ticket)?;
                    let what = if direction == Direction::Load { "load" } else { "offload" };
                    Some((what, layer, ns(*began), ns(*ended)))
                }
            };
            store.moments().iter().filter_map(row).collect()
        })
    }

    /// This rank gives up in the middle of a step: before others go on, what they compute is made worthless to a later
    /// engine. Close it next. Waits for nothing.
    pub fn give_up(&self) {
        self.slots.give_up();
    }

    /// Ends what is in flight and closes the store. Closing twice is fine.
    pub fn close(&self) {
        let opened = self.opened.lock().take();
        // What is in flight ends here, without the lock.
        drop(opened);
    }
}
