//! What makes a rank's part of the cache slower or smaller than it could be.

use kvcache_core::store::{PinFailure, SlotMemory};

use super::Opened;

/// One line for each, where a device copies.
pub(super) fn of_device(opened: &Opened) -> Vec<String> {
    let (Some(cuda), Some(pinned)) = (&opened.cuda, &opened.pinned) else { return Vec::new() };
    let mut problems = cuda.remarks();
    if let Some(failure) = pinned.pinning().failure {
        let remedy = match failure {
            PinFailure::Refused(_) => {
                "; raise the limit on locked memory (ulimit -l, docker run --ulimit memlock=-1) or lower capacity"
            }
            _ => "",
        };
        problems.push(format!(
            "L1 has {} of its {} slots, because no more host memory could be pinned: {failure}{remedy}",
            pinned.usable_slots(),
            pinned.slot_count()
        ));
    }
    problems
        .extend(opened.store.failures().into_iter().map(|failure| format!("copies have failed: {failure}")));
    if let Some(error) = cuda.lost() {
        problems
            .push(format!("the CUDA context is lost, so that nothing is loaded or stored any more: {error}"));
    }
    problems
}
