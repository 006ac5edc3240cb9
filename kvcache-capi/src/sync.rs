//! The locks and threads of what loom tests: `tests/handles_loom.rs` and `tests/background_loom.rs` put loom's in their place. They are
//! the standard library's since loom has the same faces.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
pub(crate) use std::thread;
