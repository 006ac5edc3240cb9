//! A step ends: jobs end, and the scheduler side hears of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fences::StreamFence;
use super::remote_jobs::RemoteJobs;
use super::running::Running;
use super::submission::{submit_computed, submit_through};
use super::{EngineLayout, FAILURES_MAX, Moment, ROOM_BYTES, Store};
use crate::copy_engine::CopyEngine;
use crate::plan::JobKind;
use crate::report::{Hello, JobEnd, Report};

impl Store {
    /// The forward pass is over: ends layer-wise loads, submits the offloads that no hook has, helps the copy engine within the
    /// configured share of the step, and collects what ended.
    pub fn end_step(&mut self, stream: Option<u64>) {
        let last = self.layout.last_layer();
        let unhooked = self.layers_waited <= last;
        if !self.loads.is_empty() {
            self.wait_layer(last, stream);
        }
        for mut load in std::mem::take(&mut self.loads) {
            // Attention has run on layers that nobody knows to have been there.
            load.failed |= unhooked;
            if load.failed {
                // The engine is about to compute into these blocks.
                load.wait_through(last, &*self.copies, self.config.patience);
            }
            if load.is_moving() {
                self.ordered_loads.push(load);
            } else {
                self.end_layerwise(load);
            }
        }
        self.advance_async();
        let copies = Arc::clone(&self.copies);
        let mut fence = StreamFence::new(&*copies, stream);
        if self.poisoned_by.is_some() {
            // What this step computed may stand on blocks that were not loaded.
            self.fresh_offloads.iter_mut().for_each(|offload| offload.failed = true);
        }
        let submitted =
            submit_computed(&mut self.fresh_offloads, last, &self.layout, &*self.copies, &mut fence);
        self.stats.count(submitted);
        self.offloads.append(&mut self.fresh_offloads);
        self.help();
        self.collect();
    }

    /// Copies on this thread, so that a step's offloads mostly end with it.
    fn help(&mut self) {
        if self.offloads.is_empty() && self.async_loads.is_empty() {
            return;
        }
        let began = Instant::now();
        let budget = self
            .step_began
            .elapsed()
            .mul_f32(self.config.help_share.clamp(0.0, 1.0))
            .max(self.config.help_least);
        while began.elapsed() < budget && self.copies.help(ROOM_BYTES) > 0 {}
    }

    /// Collects what has ended without waiting.
    pub fn collect(&mut self) {
        for finished in extract_ended(&mut self.offloads, &self.layout, &*self.copies) {
            self.end(finished);
        }
        for load in extract_ended(&mut self.ordered_loads, &self.layout, &*self.copies) {
            self.end_layerwise(load);
        }
        self.advance_async();
        let skip_copies = self.config.skip_copies;
        let ended = if skip_copies {
            std::mem::take(&mut self.async_loads)
        } else {
            extract_ended(&mut self.async_loads, &self.layout, &*self.copies)
        };
        for load in ended {
            if load.failed {
                self.failed_received.push(load.job.request.clone());
                self.load_errors.extend(load.engine_blocks());
            }
            self.received.push(load.job.request.clone());
            self.end(load);
        }
        let last = self.layout.last_layer();
        self.stats.count(submit_through(&mut self.offloads, last, &self.layout, &*self.copies));
        if let Some(remote) = &mut self.remote {
            self.ended.extend(remote.collect(&*self.memory));
        }
    }

    /// Waits until a load between steps has ended, or something has come from or got to L2, for `timeout` at most: for a step
    /// without a forward pass, which an engine would otherwise repeat as fast as it can.
    pub fn rest(&mut self, timeout: Duration) {
        if let Some(load) = self.async_loads.first_mut().filter(|_| self.ended.is_empty()) {
            load.rest(&*self.copies, timeout);
            self.collect();
            return;
        }
        if let Some(remote) = &self.remote
            && self.ended.is_empty()
            && self.async_loads.is_empty()
            && self.offloads.is_empty()
        {
            remote.wait(timeout);
            self.collect();
        }
    }

    fn end_layerwise(&mut self, load: Running) {
        if load.failed {
            self.poisoned_by = self.poisoned_by.max(Some(load.job.id.number));
            self.load_errors.extend(load.engine_blocks());
        }
        self.end(load);
    }

    fn end(&mut self, running: Running) {
        if let Some(timeline) = &mut self.timeline {
            let direction = running.direction();
            for (layer, ticket) in &running.trace {
                timeline.add(Moment::Copied { layer: *layer, direction, ticket: *ticket });
            }
        }
        if let Some(failure) = running.failure.as_ref().filter(|_| self.failures.len() < FAILURES_MAX) {
            self.failures.insert(failure.to_string());
        }
        let elapsed = running.elapsed().as_nanos() as u64;
        let ok = !running.failed;
        if running.job.kind == JobKind::Offload {
            for transfer in &running.job.transfers {
                if ok {
                    self.memory.publish(transfer.slot, transfer.fill);
                } else {
                    self.memory.void(transfer.slot, transfer.fill);
                }
            }
            self.stats.offloads += 1;
            self.stats.failed_offloads += u64::from(!ok);
            self.stats.offloaded_bytes += running.bytes;
            self.stats.offload_ns += elapsed;
        } else {
            self.stats.loads += 1;
            self.stats.failed_loads += u64::from(!ok);
            self.stats.loaded_bytes += running.bytes;
            self.stats.load_ns += elapsed;
            if let Some(time) = running.expected_time() {
                self.unreported_load.0 += running.bytes;
                self.unreported_load.1 += time.as_nanos() as u64;
            }
        }
        self.ended.push(JobEnd::whole(running.job.id, ok));
    }

    /// Requests whose asynchronous load has ended since the last call: all of them, and those that failed.
    pub fn take_received(&mut self) -> (Vec<String>, Vec<String>) {
        (std::mem::take(&mut self.received), std::mem::take(&mut self.failed_received))
    }

    /// Engine blocks that were promised and not loaded, since the last call.
    pub fn take_load_errors(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.load_errors).into_iter().collect()
    }

    /// This rank's report, if there is anything to say.
    pub fn take_report(&mut self) -> Option<Report> {
        let usable = self.memory.usable_slots();
        let hello = (!self.said_hello).then(|| Hello {
            slot_count: self.memory.slot_count(),
            slot_bytes: self.memory.slot_bytes() as u64,
            copy_threads: self.config.copy_threads.max(u32::from(self.copies.has_streams())),
            warm: self.memory.warm_slots(),
            highest_fill: self.memory.highest_fill(),
            epoch: self.memory.epoch(),
            remote: self.remote.as_ref().map(RemoteJobs::shard),
        });
        if hello.is_none() && self.ended.is_empty() && usable == self.reported_usable {
            return None;
        }
        self.said_hello = true;
        self.reported_usable = usable;
        // Not from the plan to the end that was seen: the end of a layer-wise load is seen when its step is over, so that a short one
        // would seem to cost as much as the step.
        let (measured_bytes, measured) = self.copies.take_load_time();
        let (expected_bytes, expected_ns) = std::mem::take(&mut self.unreported_load);
        let (fetched_bytes, fetch_ns) =
            self.remote.as_mut().map(RemoteJobs::take_fetched).unwrap_or_default();
        Some(Report {
            rank: self.config.rank,
            usable_slots: usable,
            hello,
            ended: std::mem::take(&mut self.ended),
            loaded_bytes: measured_bytes + expected_bytes,
            load_ns: measured.as_nanos() as u64 + expected_ns,
            fetched_bytes,
            fetch_ns,
        })
    }

    /// The forward pass is over, and the engine may reuse its blocks at once: returns when no copy touches its memory any
    /// more. What is under way between L1 and L2 goes on.
    pub fn finish_copies(&mut self, stream: Option<u64>) {
        self.end_step(stream);
        let last = self.layout.last_layer();
        while self.has_copies_to_end() {
            for jobs in [&mut self.offloads, &mut self.async_loads] {
                self.stats.count(submit_through(jobs, last, &self.layout, &*self.copies));
            }
            let loads = self.async_loads.iter_mut().chain(&mut self.ordered_loads);
            for running in self.offloads.iter_mut().chain(loads) {
                running.wait_through(last, &*self.copies, self.config.patience);
            }
            self.collect();
            if self.has_copies_to_end() {
                self.make_room(&mut []);
            }
        }
    }

    fn has_copies_to_end(&self) -> bool {
        !(self.offloads.is_empty() && self.async_loads.is_empty() && self.ordered_loads.is_empty())
    }

    /// Ends everything in flight, for shutdown: returns when no copy touches any memory any more.
    pub fn drain(&mut self, stream: Option<u64>) {
        self.finish_copies(stream);
        if let Some(remote) = &mut self.remote {
            remote.cancel_all();
            while remote.is_busy() {
                remote.wait(Duration::from_millis(50));
                self.ended.extend(remote.collect(&*self.memory));
            }
        }
    }
}

fn extract_ended(list: &mut Vec<Running>, layout: &EngineLayout, copies: &dyn CopyEngine) -> Vec<Running> {
    let mut pending = None;
    list.extract_if(.., |running| running.poll(layout, copies, &mut pending)).collect()
}
