//! The locks of what loom tests: `tests/handles_loom.rs` puts loom's in their place. They are the standard library's since
//! loom has the same faces.

pub(crate) use std::sync::{Mutex, PoisonError, RwLock};
