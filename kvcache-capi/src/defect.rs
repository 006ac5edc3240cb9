//! A defect of ours that was caught: where it is noted, and in which words it is told.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::status::Failure;
use super::status::kvc_status::KVC_INTERNAL;
use super::sync::{AtomicBool, Ordering};

/// Whether a panic was caught in an object, in a call or in work that it does on threads of its own. What it left is not trusted:
/// the object does nothing more.
#[derive(Default)]
pub(crate) struct Defect {
    /// Set once, and alone: whoever sees it reads nothing else because of it, so that no order is needed.
    is_noted: AtomicBool,
}

impl Defect {
    pub(crate) fn is_noted(&self) -> bool {
        self.is_noted.load(Ordering::Relaxed)
    }

    /// Runs `act`. A panic in it is noted, and a failure.
    pub(crate) fn catch<R>(&self, act: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
        catch(act).unwrap_or_else(|text| {
            self.is_noted.store(true, Ordering::Relaxed);
            Err(Failure::new(KVC_INTERNAL, text))
        })
    }
}

/// Runs `act`; the words for its panic, if it has one.
pub(crate) fn catch<R>(act: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let text = words(&*panic);
        // A payload of a foreign type could panic again while it is dropped.
        std::mem::forget(panic);
        text
    })
}

/// Why an object of this name does nothing more.
pub(crate) fn broken(name: &str) -> Failure {
    let text = format!("a defect was caught in this {name} before: close it and go on without");
    Failure::new(KVC_INTERNAL, text)
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words");
    format!("a defect of this library was caught, please report it: {text}")
}
