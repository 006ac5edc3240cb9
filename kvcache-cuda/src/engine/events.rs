//! Events that are used again, and fences made of them.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::driver::{Driver, DriverError, Event};

/// Events at hand. A wait keeps what its event stood for when it was submitted, so an event may be recorded again at once.
pub(super) struct EventPool {
    driver: Arc<dyn Driver>,
    free: Mutex<Vec<Event>>,
}

impl EventPool {
    pub(super) fn new(driver: Arc<dyn Driver>) -> Self {
        Self { driver, free: Mutex::new(Vec::new()) }
    }

    /// An event that nobody else uses.
    pub(super) fn take(&self) -> Result<Event, DriverError> {
        let free = self.free.lock().pop();
        free.map_or_else(|| self.driver.create_event(), Ok)
    }

    pub(super) fn give_back(&self, event: Event) {
        self.free.lock().push(event);
    }
}

impl Drop for EventPool {
    fn drop(&mut self) {
        for event in self.free.lock().drain(..) {
            self.driver.destroy_event(event);
        }
    }
}

/// What a [`Fence`](kvcache_core::copy_engine::Fence) of this engine holds.
pub(super) struct StreamPoint {
    pub(super) event: Event,
    pub(super) pool: Arc<EventPool>,
}

impl Drop for StreamPoint {
    fn drop(&mut self) {
        self.pool.give_back(self.event);
    }
}
