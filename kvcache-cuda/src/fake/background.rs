//! A thread that plays the part of the GPU: it gets on with what is pending though nobody looks.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Shared;

/// Starts it; it ends when the state says so.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name("fake-cuda".into()).spawn(move || run(&shared))
}

fn run(shared: &Shared) {
    let mut state = shared.state.lock();
    while !state.stopping {
        let steps = state.random.between(1, 4);
        if state.advance(steps) == 0 {
            shared.submitted.wait(&mut state);
        } else {
            let pause = Duration::from_micros(state.random.between(5, 300) as u64);
            shared.submitted.wait_for(&mut state, pause);
        }
    }
}
