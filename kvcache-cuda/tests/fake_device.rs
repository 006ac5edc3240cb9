//! The fake device against what CUDA's manual says of streams and events, and against programs that are wrong.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of the functions that are marked as such")]

#[path = "fake_device/events.rs"]
mod events;
#[path = "fake_device/faults.rs"]
mod faults;
#[path = "fake_device/launches.rs"]
mod launches;
#[path = "fake_device/laziness.rs"]
mod laziness;
#[path = "fake_device/program.rs"]
mod program;
#[path = "fake_device/synchronised.rs"]
mod synchronised;
#[path = "fake_device/wrong_programs.rs"]
mod wrong_programs;
