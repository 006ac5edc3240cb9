//! Every interleaving of two or three threads on a table of handles, by loom.

#[path = "../src/handles.rs"]
#[allow(dead_code, unreachable_pub)]
mod handles;

mod sync {
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, RwLock};
    pub(crate) use std::sync::PoisonError;
}

use handles::Handles;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};

/// Says when it was dropped.
struct Value(Arc<AtomicBool>);

impl Drop for Value {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A user sees the value whole or not at all; one of two closers gets it, and neither returns before it is gone.
#[test]
fn a_value_lives_while_it_is_used_and_goes_once() {
    loom::model(|| {
        let table = Arc::new(Handles::new(1));
        let gone = Arc::new(AtomicBool::new(false));
        let Ok(handle) = table.insert(Value(gone.clone())) else { unreachable!("the table is empty") };
        let user = loom::thread::spawn({
            let table = table.clone();
            move || table.with(handle, |value| assert!(!value.0.load(Ordering::SeqCst)))
        });
        let closer = loom::thread::spawn({
            let table = table.clone();
            let gone = gone.clone();
            move || {
                let is_mine = table.remove(handle, drop).is_some();
                assert!(gone.load(Ordering::SeqCst), "whoever has closed it knows that it is gone");
                is_mine
            }
        });
        let here = table.remove(handle, drop).is_some();
        assert!(gone.load(Ordering::SeqCst), "whoever has closed it knows that it is gone");
        let there = closer.join().unwrap();
        assert!(here ^ there, "one of two closers gets the value");
        user.join().unwrap();
        assert!(table.with(handle, |_| ()).is_none());
    });
}

/// An entry that is used again is not found by the old handle, at no moment.
#[test]
fn an_old_handle_never_finds_a_new_value() {
    loom::model(|| {
        let table = Arc::new(Handles::new(1));
        let Ok(old) = table.insert(1) else { unreachable!("the table is empty") };
        let user = loom::thread::spawn({
            let table = table.clone();
            move || table.with(old, |value| *value)
        });
        assert_eq!(table.remove(old, |value| value), Some(1));
        let Ok(new) = table.insert(2) else { unreachable!("the table is empty") };
        assert_ne!(old, new);
        assert!(matches!(user.join().unwrap(), None | Some(1)));
        assert_eq!(table.with(new, |value| *value), Some(2));
    });
}
