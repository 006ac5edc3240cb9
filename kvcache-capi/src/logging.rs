//! The library's log lines, for the program that embeds it.

use std::ffi::{CString, c_char, c_void};
use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

use crate::boundary::call;
use crate::status::Failure;
use crate::status::kvc_status;

/// How important a log line is.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(non_camel_case_types, reason = "the names of the header")]
pub enum kvc_log_level {
    /// Nothing at all.
    KVC_LOG_OFF = 0,
    /// Something that was asked for is not done.
    KVC_LOG_ERROR = 1,
    /// The cache is slower or smaller than it could be.
    KVC_LOG_WARN = 2,
    /// What was opened, and how.
    KVC_LOG_INFO = 3,
    /// For those who look for a fault.
    KVC_LOG_DEBUG = 4,
}

/// Takes one log line: its level (a kvc_log_level), the part of the library, and the text, both of which live until it
/// returns. It may be called from any thread, also several at a time. It must not call this library, nor throw or jump out, nor wait
/// for a thread that is in a call of this library.
#[expect(non_camel_case_types, reason = "the names of the header")]
pub type kvc_log_callback = Option<
    unsafe extern "C" fn(user_data: *mut c_void, level: i32, part: *const c_char, text: *const c_char),
>;

struct Target {
    callback: unsafe extern "C" fn(*mut c_void, i32, *const c_char, *const c_char),
    user_data: *mut c_void,
}

// SAFETY: the pointer is only handed back to the program's function, which by its contract is called from any thread.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

struct Callback(RwLock<Option<Target>>);

static CALLBACK: Callback = Callback(RwLock::new(None));
static INSTALLED: Once = Once::new();

impl Log for Callback {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let Some(target) = &*self.0.read() else { return };
        let text = |text: String| CString::new(text.replace('\0', "\\0")).unwrap_or_default();
        let (part, line) = (text(record.target().to_owned()), text(record.args().to_string()));
        // SAFETY: the program gave this function for such calls; both texts end with NUL and live until it returns.
        unsafe { (target.callback)(target.user_data, record.level() as i32, part.as_ptr(), line.as_ptr()) };
    }

    fn flush(&self) {}
}

/// Sends the library's log lines up to `level` (a kvc_log_level) to `callback`, for all handles of this process; NULL sends
/// them nowhere, as at the start. When it has returned, the callback before it is not running and is not called any more.
///
/// Any thread, but not from the callback.
///
/// # Safety
/// `callback` can be called with `user_data` from any thread until another one is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_set_log(
    callback: kvc_log_callback,
    user_data: *mut c_void,
    level: i32,
) -> kvc_status {
    call("kvc_set_log", || {
        let filter = match level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            _ => {
                let text = format!("level is {level}: use KVC_LOG_OFF (0) to KVC_LOG_DEBUG (4)");
                return Err(Failure::argument(text));
            }
        };
        // Another logger of a program that links this library statically and is written in Rust: it has the lines then.
        INSTALLED.call_once(|| drop(log::set_logger(&CALLBACK)));
        *CALLBACK.0.write() = callback.map(|callback| Target { callback, user_data });
        log::set_max_level(if callback.is_some() { filter } else { LevelFilter::Off });
        Ok(())
    })
}
