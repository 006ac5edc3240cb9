//! Status codes, and the text of a thread's last error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

/// What became of a call. A code keeps its number and its meaning for ever; new ones are added at the end.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(non_camel_case_types, reason = "the names of the header")]
pub enum kvc_status {
    /// Done.
    KVC_OK = 0,
    /// Not ended yet: ask again. Not an error.
    KVC_PENDING = 1,
    /// An argument that must not be NULL is.
    KVC_NULL_ARGUMENT = 2,
    /// An argument has a value that it cannot have.
    KVC_INVALID_ARGUMENT = 3,
    /// A handle that was closed, is of another kind, or never was one.
    KVC_BAD_HANDLE = 4,
    /// A setting is missing, unknown or wrong.
    KVC_BAD_CONFIG = 5,
    /// A buffer's bytes do not fit the keys.
    KVC_WRONG_SIZE = 6,
    /// The buffer for an answer is too small; its size was set to what is needed, and nothing is lost.
    KVC_BUFFER_TOO_SMALL = 7,
    /// Header and library do not go together.
    KVC_VERSION_MISMATCH = 8,
    /// This machine or this build lacks what was asked for.
    KVC_UNAVAILABLE = 9,
    /// The system refuses memory, a thread or a file.
    KVC_SYSTEM = 10,
    /// A bound is reached: try again after something has ended.
    KVC_BUSY = 11,
    /// Bytes from the other half of the engine that are not what it would have sent.
    KVC_MALFORMED = 12,
    /// What was waited for was given up, since its cache was closed.
    KVC_CANCELLED = 13,
    /// A defect of this library. It was caught: the call did nothing more, and the caller goes on without the cache.
    KVC_INTERNAL = 14,
}

/// A failed call: the code and the words for it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: kvc_status,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(status: kvc_status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// An argument has a wrong value.
    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::new(kvc_status::KVC_INVALID_ARGUMENT, text)
    }

    /// A setting is wrong.
    pub(crate) fn config(text: impl Into<String>) -> Self {
        Self::new(kvc_status::KVC_BAD_CONFIG, text)
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

pub(crate) fn remember(text: &str) {
    // A text may quote what the caller gave.
    let text = CString::new(text.replace('\0', "\\0")).unwrap_or_default();
    // A thread that is ending has no place for it any more.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = text);
}

/// The text of this thread's last call that failed: one line, in lower case, with the value and the remedy. Empty if none
/// has.
///
/// The text belongs to the library and lives until this thread's next call that fails, or its end. Never NULL. Any thread,
/// at any time.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The name of a status code, such as "KVC_OK"; "unknown status" for a number that is none. A static text, never NULL.
///
/// Any thread, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_status_name(status: i32) -> *const c_char {
    NAMES
        .iter()
        .find(|(code, _)| *code as i32 == status)
        .map_or(c"unknown status", |(_, name)| *name)
        .as_ptr()
}

macro_rules! names {
    ($($name:ident),+ $(,)?) => {
        const NAMES: &[(kvc_status, &CStr)] = &[$((
            kvc_status::$name,
            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name without NUL"),
            },
        )),+];
    };
}

names![
    KVC_OK,
    KVC_PENDING,
    KVC_NULL_ARGUMENT,
    KVC_INVALID_ARGUMENT,
    KVC_BAD_HANDLE,
    KVC_BAD_CONFIG,
    KVC_WRONG_SIZE,
    KVC_BUFFER_TOO_SMALL,
    KVC_VERSION_MISMATCH,
    KVC_UNAVAILABLE,
    KVC_SYSTEM,
    KVC_BUSY,
    KVC_MALFORMED,
    KVC_CANCELLED,
    KVC_INTERNAL,
];
