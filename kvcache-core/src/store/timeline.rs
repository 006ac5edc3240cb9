//! Drill: remembers when layers were waited for, computed and handed to the copy engine, to show what overlaps.

use std::time::Instant;

use crate::copy_engine::{Direction, Ticket};

/// Something that happened to a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// The engine's thread waited for the layer's load.
    Waited {
        /// The layer.
        layer: usize,
        /// When it asked.
        began: Instant,
        /// When the layer was there.
        ended: Instant,
    },
    /// The layer had been computed.
    Computed {
        /// The layer.
        layer: usize,
        /// When the hook was called.
        at: Instant,
    },
    /// A batch copied a layer of a job; the copy engine knows when.
    Copied {
        /// The layer.
        layer: usize,
        /// Which way.
        direction: Direction,
        /// The batch.
        ticket: Ticket,
    },
}

/// The moments so far, bounded.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    moments: Vec<Moment>,
}

/// Enough for thousands of steps of a small model; later ones are dropped.
const MOST_MOMENTS: usize = 1 << 18;

impl Timeline {
    pub(super) fn add(&mut self, moment: Moment) {
        if self.moments.len() < MOST_MOMENTS {
            self.moments.push(moment);
        }
    }

    pub(super) fn moments(&self) -> &[Moment] {
        &self.moments
    }
}
