//! Memory, copies and randomness that tests control.
#![allow(dead_code, reason = "every test binary uses another part")]

pub(crate) mod fake_copies;
pub(crate) mod fake_memory;
pub(crate) mod fake_ring;
pub(crate) mod random;
