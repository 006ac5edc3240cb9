//! What should be, from what was asked for and what is: pure functions, no client and no clock.

pub mod ring;
