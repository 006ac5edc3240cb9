//! One fence for all jobs of a moment.

use crate::copy_engine::{CopyEngine, CopyFailure, Fence};

/// What the engine's stream holds now, marked when the first job asks for it.
pub(super) struct StreamFence<'engine> {
    copies: &'engine dyn CopyEngine,
    stream: Option<u64>,
    made: Option<Result<Fence, CopyFailure>>,
}

impl<'engine> StreamFence<'engine> {
    /// Without a stream there is nothing to wait for where the engine computes on the calling thread; on a device nothing is
    /// known of when its work ends, so no copy can be ordered after it.
    pub(super) fn new(copies: &'engine dyn CopyEngine, stream: Option<u64>) -> Self {
        Self { copies, stream, made: None }
    }

    /// The fence; the same at each call.
    pub(super) fn get(&mut self) -> Result<Option<Fence>, CopyFailure> {
        let Some(stream) = self.stream else {
            let unordered = || CopyFailure::Other("the engine's stream was not given".to_owned());
            return if self.copies.has_streams() { Err(unordered()) } else { Ok(None) };
        };
        self.made.get_or_insert_with(|| self.copies.fence(stream)).clone().map(Some)
    }
}
