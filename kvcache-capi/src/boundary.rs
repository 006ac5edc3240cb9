//! The way in and out: no panic crosses it, and every failure leaves its words behind.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::defect::{self, Defect};
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

    /// Where defects are noted: one place for the calls and for what the object does on threads of its own.
    fn defect(&self) -> Arc<Defect> {
        Arc::default()
    }
}

/// An object, and whether a defect was caught in it.
pub(crate) struct Opened<T> {
    value: T,
    defect: Arc<Defect>,
}

/// Runs the body of the exported function `name`.
pub(crate) fn call(name: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> kvc_status {
    call_for(name, || body().map(|()| KVC_OK))
}

/// The same for a function that has other outcomes than done.
pub(crate) fn call_for(name: &'static str, body: impl FnOnce() -> Result<kvc_status, Failure>) -> kvc_status {
    match defect::catch(body).unwrap_or_else(|text| Err(Failure::new(KVC_INTERNAL, text))) {
        Ok(status) => status,
        Err(failure) => {
            remember(&format!("{name}: {}", failure.text));
            failure.status
        }
    }
}

/// Puts an object behind a handle, as the pointer that the caller gets.
pub(crate) fn open<T: Object, P>(value: T) -> Result<*mut P, Failure> {
    let defect = value.defect();
    let opened = Opened { value, defect };
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
    with_opened(pointer, |opened: &Opened<T>| {
        if opened.defect.is_noted() {
            return Err(defect::broken(T::NAME));
        }
        opened.defect.catch(|| act(&opened.value))
    })
}

/// The same after a defect as before: for what does not depend on the state that one leaves.
pub(crate) fn with_even_broken<T: Object, P, R>(
    pointer: *const P,
    act: impl FnOnce(&T) -> R,
) -> Result<R, Failure> {
    with_opened(pointer, |opened: &Opened<T>| opened.defect.catch(|| Ok(act(&opened.value))))
}

fn with_opened<T: Object, P, R>(
    pointer: *const P,
    act: impl FnOnce(&Opened<T>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    T::table().with(handle_of(pointer), act).unwrap_or_else(|| Err(bad_handle::<T, P>(pointer)))
}

/// Takes the object away from its handle, when no call uses it any more, and ends it. Whoever closes it at the same time waits for
/// that: where any of them returns, the object is gone.
pub(crate) fn close<T: Object, P, R>(pointer: *const P, end: impl FnOnce(T) -> R) -> Result<R, Failure> {
    let ended = T::table().remove(handle_of(pointer), |opened| end(opened.value));
    ended.ok_or_else(|| bad_handle::<T, P>(pointer))
}

/// The state behind an object's lock. Whoever waited for it while a panic ended another call does not get it: the lock, unlike
/// those that are not poisoned, says so before anybody else has it.
pub(crate) fn state<T: Object, S>(lock: &Mutex<S>) -> Result<MutexGuard<'_, S>, Failure> {
    lock.lock().map_err(|_| defect::broken(T::NAME))
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
        assert!(close::<Counter, u8, _>(std::ptr::without_provenance(handle), drop).is_ok());
    }
}
