//! Small programs that do what they must not, each beside a twin that differs in that alone.

#[path = "wrong_programs/copies.rs"]
mod copies;
#[path = "wrong_programs/kernels.rs"]
mod kernels;
#[path = "wrong_programs/lifetimes.rs"]
mod lifetimes;
#[path = "wrong_programs/races.rs"]
mod races;

use kvcache_core::copy_engine::Piece;
use kvcache_cuda::driver::{Driver, Event, Stream};
use kvcache_cuda::fake::FakeDevice;

use crate::program::Calls;

/// Runs both twins with several seeds: `text` is among the violations of the wrong one, the right one has none.
fn expect(text: &str, program: impl Fn(&FakeDevice, bool)) {
    for seed in 0..20 {
        let device = FakeDevice::new(seed);
        program(&device, true);
        let violations = device.settle();
        assert!(violations.iter().any(|violation| violation.contains(text)), "seed {seed}: {violations:#?}");
        let device = FakeDevice::new(seed);
        program(&device, false);
        assert_eq!(device.settle(), [""; 0], "seed {seed}: of the right twin of {text:?}");
    }
}

/// Ends the work of a stream, as the host knows.
fn end(device: &FakeDevice, stream: Stream) {
    device.synchronize_event(device.recorded(stream)).unwrap();
}

/// A strict device says it on the spot.
#[test]
#[should_panic(expected = "a CUDA program does what it must not: destroy_event")]
fn a_strict_device_panics() {
    FakeDevice::options().strict(true).build().destroy_event(Event(1));
}

#[test]
fn pieces_without_bytes_are_nothing() {
    let device = FakeDevice::new(2);
    // SAFETY: nothing is touched.
    unsafe { device.copy(Piece { src: 1, dst: 2, bytes: 0 }, device.stream()) }.unwrap();
    assert_eq!((device.pending(), device.violations()), (0, vec![]));
}
