//! What makes a cache slower or smaller than it could be where a device copies.

use kvcache_core::store::{PinFailure, Pinning};
use kvcache_cuda::engine::CudaCopyEngine;

/// One line for each. `usable` of `slots` slots are pinned; copies have failed for the reasons in `failures`.
pub(crate) fn device_problems(
    cuda: &CudaCopyEngine,
    pinning: &Pinning,
    (usable, slots): (u32, u32),
    failures: Vec<String>,
) -> Vec<String> {
    let mut problems = cuda.remarks();
    if let Some(failure) = &pinning.failure {
        let remedy = match failure {
            PinFailure::Refused(_) => {
                "; raise the limit on locked memory (ulimit -l, docker run --ulimit memlock=-1) or lower capacity"
            }
            _ => "",
        };
        problems.push(format!(
            "L1 has {usable} of its {slots} slots, because no more host memory could be pinned: {failure}{remedy}"
        ));
    }
    problems.extend(failures.into_iter().map(|failure| format!("copies have failed: {failure}")));
    if let Some(error) = cuda.lost() {
        problems
            .push(format!("the CUDA context is lost, so that nothing is loaded or stored any more: {error}"));
    }
    problems
}
