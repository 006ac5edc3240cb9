//! The driver's face.

use std::sync::Arc;

use kvcache_core::copy_engine::Piece;

use super::bytes::Promise;
use super::launches::is_of_form;
use super::memory::DEVICE_OFFSET;
use super::operation::{Recording, Touched, Work};
use super::state::{Order, State};
use super::status::{Call, Status};
use super::streams::{Kind, Unusable};
use super::{FakeDevice, mappings};
use crate::driver::{
    Arguments, Descriptors, DeviceInfo, Driver, DriverError, Event, HostAllocation, LaunchShape, Priority,
    SourceOrder, Stream,
};
use crate::kernels::Kernel;

/// An event that is asked so often is driven to its end: polling makes progress, as it does on a GPU.
const QUERIES_MAX: u32 = 16;

impl Driver for FakeDevice {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn create_stream(&self, _: Priority) -> Result<Stream, DriverError> {
        self.call(Call::CreateStream, 0, |state| Ok(state.streams.create(Kind::Ours)))
    }

    fn destroy_stream(&self, stream: Stream) {
        self.with_state(|state| match state.streams.index_even_if_capturing(stream) {
            Some(index) if state.streams.streams[index].kind == Kind::Ours => {
                state.streams.streams[index].alive = false;
            }
            Some(_) => state.violation(format!("destroy_stream: {stream:?} belongs to the engine")),
            None => state.violation(format!("destroy_stream: there is no such stream: {stream:?}")),
        });
    }

    fn check_stream(&self, stream: Stream) -> Result<(), DriverError> {
        self.call(Call::CheckStream, 0, |state| match state.streams.index(stream) {
            Ok(_) => Ok(()),
            Err(Unusable::OtherDevice) => Err(Status::INVALID_CONTEXT.of(Call::CheckStream)),
            Err(Unusable::Capturing) => Err(Status::STREAM_CAPTURE_UNSUPPORTED.of(Call::CheckStream)),
            Err(Unusable::Unknown | Unusable::Destroyed) => Err(Status::INVALID_HANDLE.of(Call::CheckStream)),
        })
    }

    fn create_event(&self) -> Result<Event, DriverError> {
        self.call(Call::CreateEvent, 0, |state| Ok(state.streams.create_event()))
    }

    fn destroy_event(&self, event: Event) {
        self.with_state(|state| {
            if !state.streams.destroy_event(event) {
                state.violation(format!("destroy_event: there is no such event: {event:?}"));
            }
        });
    }

    fn record_event(&self, event: Event, stream: Stream) -> Result<(), DriverError> {
        self.call(Call::RecordEvent, 0, |state| {
            let stream = state.stream(Call::RecordEvent, stream)?;
            state.recording(Call::RecordEvent, event)?;
            let recording = state.record(stream);
            if let Some(event) = state.streams.event(event) {
                event.recording = Some(recording);
                event.queries = 0;
            }
            Ok(())
        })
    }

    fn wait_event(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        self.call(Call::WaitEvent, 0, |state| {
            let stream = state.stream(Call::WaitEvent, stream)?;
            if let Some(recording) = state.recording(Call::WaitEvent, event)? {
                state.submit(stream, "wait", Work::Wait(recording), Touched::default(), Order::default());
            }
            Ok(())
        })
    }

    fn query_event(&self, event: Event) -> Result<bool, DriverError> {
        self.call(Call::QueryEvent, 0, |state| {
            let Some(recording) = state.recording(Call::QueryEvent, event)? else { return Ok(true) };
            let queries = state.streams.event(event).map_or(0, |event| {
                event.queries += 1;
                event.queries
            });
            match state.random.below(4) {
                _ if queries >= QUERIES_MAX => state.run_until(recording.stream, recording.position),
                0 => {}
                1 => state.run_until(recording.stream, recording.position),
                _ => {
                    let steps = state.random.between(1, 4);
                    state.advance(steps);
                }
            }
            state.still_there(Call::QueryEvent)?;
            let is_done = state.streams.is_done(&recording);
            if is_done {
                state.host_learns(&recording);
            }
            Ok(is_done)
        })
    }

    fn synchronize_event(&self, event: Event) -> Result<(), DriverError> {
        self.call(Call::SynchronizeEvent, 0, |state| {
            let Some(recording) = state.recording(Call::SynchronizeEvent, event)? else { return Ok(()) };
            state.run_until(recording.stream, recording.position);
            state.still_there(Call::SynchronizeEvent)?;
            state.host_learns(&recording);
            Ok(())
        })
    }

    fn allocate_device(&self, bytes: usize) -> Result<u64, DriverError> {
        self.call(Call::AllocateDevice, bytes, |state| {
            if bytes == 0 {
                return Err(Status::INVALID_VALUE.of(Call::AllocateDevice));
            }
            if state.memory.device_bytes().saturating_add(bytes) as u64 > self.info.memory_bytes {
                return Err(Status::OUT_OF_MEMORY.of(Call::AllocateDevice));
            }
            Ok(state.memory.allocate(bytes, false, &mut state.random) as u64)
        })
    }

    fn free_device(&self, address: u64) {
        self.with_state(|state| match state.memory.free(address as usize, false) {
            Some(range) => state.release("free_device", range),
            None => state.violation(format!("free_device: nothing is allocated at {address:#x}")),
        });
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostAllocation, DriverError> {
        self.call(Call::AllocateHost, bytes, |state| {
            if bytes == 0 {
                return Err(Status::INVALID_VALUE.of(Call::AllocateHost));
            }
            let host = state.memory.allocate(bytes, true, &mut state.random);
            Ok(HostAllocation { host, device: host as u64 + DEVICE_OFFSET })
        })
    }

    fn free_host(&self, host: usize) {
        self.with_state(|state| match state.memory.free(host, true) {
            Some(range) => state.release("free_host", range),
            None => state.violation(format!("free_host: nothing is allocated at {host:#x}")),
        });
    }

    unsafe fn register_host(&self, base: usize, bytes: usize) -> Result<u64, DriverError> {
        self.call(Call::RegisterHost, bytes, |state| {
            if base == 0 || bytes == 0 || !mappings::is_writable(base, bytes) {
                return Err(Status::INVALID_VALUE.of(Call::RegisterHost));
            }
            match state.memory.register(base, bytes) {
                Ok(()) => Ok(base as u64 + DEVICE_OFFSET),
                Err(_) => Err(Status::HOST_MEMORY_ALREADY_REGISTERED.of(Call::RegisterHost)),
            }
        })
    }

    fn unregister_host(&self, base: usize) {
        self.with_state(|state| match state.memory.unregister(base) {
            Some(range) => state.release("unregister_host", range),
            None => state.violation(format!("unregister_host: nothing is registered at {base:#x}")),
        });
    }

    unsafe fn copy(&self, piece: Piece, stream: Stream) -> Result<(), DriverError> {
        self.call(Call::Copy, piece.bytes, |state| {
            let stream = state.stream(Call::Copy, stream)?;
            // SAFETY: this method's contract is the promise's.
            state.copy(unsafe { Promise::given() }, piece, stream)
        })
    }

    fn has_batch_copy(&self) -> bool {
        self.batch_copy && self.info.host_addresses_are_shared
    }

    unsafe fn copy_batch(
        &self,
        descriptors: &Arc<Descriptors>,
        order: SourceOrder,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.call(Call::CopyBatch, descriptors.sizes.iter().sum(), |state| {
            if !self.has_batch_copy() {
                return Err(Status::NOT_SUPPORTED.of(Call::CopyBatch));
            }
            // The driver has no batches on the legacy default stream.
            if stream == Stream(0) {
                return Err(Status::INVALID_VALUE.of(Call::CopyBatch));
            }
            let stream = state.stream(Call::CopyBatch, stream)?;
            // SAFETY: this method's contract is the promise's.
            state.copy_batch(unsafe { Promise::given() }, descriptors, order == SourceOrder::Any, stream)
        })
    }

    fn load_kernels(&self) -> Result<(), DriverError> {
        self.call(Call::LoadKernels, 0, |state| {
            state.kernels_loaded = true;
            Ok(())
        })
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        arguments: &Arguments,
        shape: LaunchShape,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.call(Call::Launch, 0, |state| {
            let stream = state.stream(Call::Launch, stream)?;
            if !state.kernels_loaded {
                let why = "the kernels were not loaded".to_owned();
                return Err(state.refuse(Call::Launch, Status::NOT_FOUND, why));
            }
            let LaunchShape { blocks, threads } = shape;
            if blocks == 0 || !(32..=512).contains(&threads) || !threads.is_multiple_of(32) {
                return Err(Status::INVALID_VALUE.of(Call::Launch));
            }
            if !is_of_form(kernel, arguments) {
                let why = format!("{kernel:?} does not take {arguments:?}");
                return Err(state.refuse(Call::Launch, Status::INVALID_VALUE, why));
            }
            // SAFETY: this method's contract is the promise's.
            state.launch(unsafe { Promise::given() }, kernel, *arguments, stream)
        })
    }
}

impl FakeDevice {
    fn call<Value>(
        &self,
        call: Call,
        bytes: usize,
        body: impl FnOnce(&mut State) -> Result<Value, DriverError>,
    ) -> Result<Value, DriverError> {
        self.with_state(|state| {
            state.admit(call, bytes)?;
            body(state)
        })
    }
}

impl State {
    /// What an event stands for, if it was recorded.
    fn recording(&mut self, call: Call, event: Event) -> Result<Option<Arc<Recording>>, DriverError> {
        match self.streams.event(event) {
            Some(state) => Ok(state.recording.clone()),
            None => {
                let why = format!("there is no such event: {event:?}");
                Err(self.refuse(call, Status::INVALID_HANDLE, why))
            }
        }
    }

    /// Whether the context outlived what just ran.
    fn still_there(&self, call: Call) -> Result<(), DriverError> {
        self.lost.map_or(Ok(()), |status| Err(status.of(call)))
    }
}
