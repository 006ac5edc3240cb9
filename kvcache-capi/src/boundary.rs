//! The way in and out: no panic crosses it, and every failure leaves its words behind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::handles::{Handle, Handles};
use crate::status::kvc_status::{self, KVC_BAD_HANDLE, KVC_INTERNAL, KVC_OK, KVC_SYSTEM};
use crate::status::{Failure, remember};

/// What can be behind a handle.
pub(crate) trait Object: Send + Sync + Sized + 'static {
    /// The word for it in messages, and the call that makes one.
    const NAME: &'static str;
    const OPENED_BY: &'static str;

    /// All objects of this kind.
    fn table() -> &'static Handles<Opened<Self>>;
}

/// An object, and whether a defect was caught in it: then nothing of it is trusted any more.
pub(crate) struct Opened<T> {
    value: T,
    is_broken: AtomicBool,
}

/// Runs the body of the exported function `name`.
pub(crate) fn call(name: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> kvc_status {
    call_for(name, || body().map(|()| KVC_OK))
}

/// The same for a function that has other outcomes than done.
pub(crate) fn call_for(name: &'static str, body: impl FnOnce() -> Result<kvc_status, Failure>) -> kvc_status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            remember(&format!("{name}: {}", failure.text));
            failure.status
        }
        Err(panic) => {
            remember(&format!("{name}: {}", defect(&*panic)));
            // A payload of a foreign type could panic again while it is dropped.
            std::mem::forget(panic);
            KVC_INTERNAL
        }
    }
}

/// Puts an object behind a handle, as the pointer that the caller gets.
pub(crate) fn open<T: Object, P>(value: T) -> Result<*mut P, Failure> {
    let opened = Opened { value, is_broken: AtomicBool::new(false) };
    match T::table().insert(opened) {
        Ok(Handle(number)) => Ok(std::ptr::without_provenance_mut(number as usize)),
        Err(_) => Err(Failure::new(KVC_SYSTEM, format!("too many {} handles are open: close some", T::NAME))),
    }
}

/// Does `act` with the object behind `pointer`. A panic in it breaks the object: the state that it left is not trusted.
pub(crate) fn with<T: Object, P, R>(
    pointer: *const P,
    act: impl FnOnce(&T) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let acted = T::table().with(handle_of(pointer), |opened| {
        if opened.is_broken.load(Ordering::Relaxed) {
            return Err(broken::<T>());
        }
        catch_unwind(AssertUnwindSafe(|| act(&opened.value))).unwrap_or_else(|panic| {
            opened.is_broken.store(true, Ordering::Relaxed);
            let text = defect(&*panic);
            std::mem::forget(panic);
            Err(Failure::new(KVC_INTERNAL, text))
        })
    });
    acted.unwrap_or_else(|| Err(bad_handle::<T, P>(pointer)))
}

/// Takes the object away from its handle, when no call uses it any more.
pub(crate) fn close<T: Object, P>(pointer: *const P) -> Result<T, Failure> {
    match T::table().remove(handle_of(pointer)) {
        Some(opened) => Ok(opened.value),
        None => Err(bad_handle::<T, P>(pointer)),
    }
}

/// The state behind an object's lock. Whoever waited for it while a panic ended another call does not get it: the lock, unlike
/// those that are not poisoned, says so before anybody else has it.
pub(crate) fn state<T: Object, S>(lock: &Mutex<S>) -> Result<MutexGuard<'_, S>, Failure> {
    lock.lock().map_err(|_| broken::<T>())
}

fn broken<T: Object>() -> Failure {
    let text = format!("a defect was caught in this {} before: close it and go on without", T::NAME);
    Failure::new(KVC_INTERNAL, text)
}

fn handle_of<P>(pointer: *const P) -> Handle {
    Handle(pointer.addr() as u64)
}

fn bad_handle<T: Object, P>(pointer: *const P) -> Failure {
    let name = T::NAME;
    if pointer.is_null() {
        return Failure::new(
            kvc_status::KVC_NULL_ARGUMENT,
            format!("the {name} is NULL: pass what {} gave", T::OPENED_BY),
        );
    }
    Failure::new(
        KVC_BAD_HANDLE,
        format!("{:#x} is no open {name}: it was closed, or {} never gave it", pointer.addr(), T::OPENED_BY),
    )
}

fn defect(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words");
    format!("a defect of this library was caught, please report it: {text}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, LazyLock};

    use super::*;

    struct Counter(Mutex<u32>);

    impl Object for Counter {
        const NAME: &'static str = "counter";
        const OPENED_BY: &'static str = "nothing";

        fn table() -> &'static Handles<Opened<Self>> {
            static TABLE: LazyLock<Handles<Opened<Counter>>> = LazyLock::new(|| Handles::new(15));
            &TABLE
        }
    }

    /// A call that waits while another one panics does not see what that left behind, and neither does a later one.
    #[test]
    fn what_a_panic_leaves_is_seen_by_nobody() {
        let handle = open::<Counter, u8>(Counter(Mutex::new(0))).unwrap().addr();
        let both_are_in = Barrier::new(2);
        let count = |act: &(dyn Fn(&mut u32) + Sync), is_in: &(dyn Fn() + Sync)| {
            call("count", || {
                with::<Counter, u8, _>(std::ptr::without_provenance(handle), |counter| {
                    is_in();
                    act(&mut *state::<Counter, _>(&counter.0)?);
                    Ok(())
                })
            })
        };
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let half = |value: &mut u32| {
                    *value = 1;
                    both_are_in.wait();
                    // Time for the other one to come to the lock; without it the test shows less.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    panic!("planted");
                };
                count(&half, &|| ())
            });
            let waits = scope.spawn(|| {
                count(&|value| *value += 1, &|| {
                    both_are_in.wait();
                })
            });
            assert_eq!([panics.join().unwrap(), waits.join().unwrap()], [KVC_INTERNAL; 2]);
        });
        assert_eq!(count(&|value| *value += 1, &|| ()), KVC_INTERNAL);
        assert!(close::<Counter, u8>(std::ptr::without_provenance(handle)).is_ok());
    }
}
