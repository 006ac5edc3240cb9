//! A `libcuda.so.1` that is compiled by the test, and processes that find it in place of a driver.
//!
//! A process opens the library once. So each case runs in a child of its own: the test program starts itself again with the
//! name of the test, and the environment says which case it is.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

/// Which library a child finds.
pub(super) enum Found {
    /// None but the machine's.
    Nothing,
    /// A file that is no library.
    Text,
    /// The one of `libcuda.c`, compiled with these options.
    Compiled(&'static [&'static str]),
}

/// All of `libcuda.c`.
pub(super) const WHOLE: Found = Found::Compiled(&[]);

/// Runs `body` in a child of the test `test`, with the library and these variables.
pub(super) fn in_child(
    test: &str,
    case: &str,
    found: Found,
    variables: &[(&str, &str)],
    body: impl FnOnce(),
) {
    let id = format!("{test} {case}");
    match env::var(CHILD) {
        Ok(wanted) if wanted == id => {
            body();
            println!("\n{RAN} {id}");
        }
        // A child of another case of the same test.
        Ok(_) => {}
        Err(_) => {
            let folder = Folder::new();
            folder.fill(found);
            let output = Command::new(env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture", "--test-threads=1"])
                .env_remove("CUDA_VISIBLE_DEVICES")
                .env(CHILD, &id)
                .env("LD_LIBRARY_PATH", &folder.0)
                .env(LOG, folder.0.join("log"))
                .envs(variables.iter().copied())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            // The second condition is for a misspelt name, with which nothing runs and nothing fails.
            let ran = output.status.success() && text.contains(&format!("{RAN} {id}"));
            assert!(ran, "{id}: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// The folder in which this child finds the library.
pub(super) fn folder() -> PathBuf {
    Path::new(&env::var(LOG).unwrap()).parent().unwrap().to_owned()
}

/// What the library has written since the last look.
pub(super) fn calls() -> Vec<String> {
    let path = env::var(LOG).unwrap();
    let text = fs::read_to_string(&path).unwrap_or_default();
    let _ = fs::remove_file(&path);
    text.lines().map(str::to_owned).collect()
}

/// The next call of a function returns `status` and does nothing.
pub(super) fn fail(function: &CStr, status: c_int) {
    // SAFETY: the signature of `fake_fail` in `libcuda.c`; it copies the text.
    unsafe {
        let fail: unsafe extern "C" fn(*const c_char, c_int) = std::mem::transmute(symbol(c"fake_fail"));
        fail(function.as_ptr(), status);
    }
}

/// A stream that the engine has made on a device.
pub(super) fn engine_stream(device: c_int, capturing: bool) -> u64 {
    // SAFETY: the signature of `fake_engine_stream` in `libcuda.c`.
    unsafe {
        let make: unsafe extern "C" fn(c_int, c_int) -> *mut c_void =
            std::mem::transmute(symbol(c"fake_engine_stream"));
        make(device, c_int::from(capturing)) as u64
    }
}

/// Another thread begins to record a CUDA graph in the mode "global", or ends.
pub(super) fn record_elsewhere(begin: bool) {
    // SAFETY: the signature of `fake_record` in `libcuda.c`.
    unsafe {
        let record: unsafe extern "C" fn(c_int) = std::mem::transmute(symbol(c"fake_record"));
        record(c_int::from(begin));
    }
}

/// Whether a call of ours has broken that graph.
pub(super) fn graph_is_broken() -> bool {
    // SAFETY: the signature of `fake_recording_is_broken` in `libcuda.c`.
    unsafe {
        let is_broken: unsafe extern "C" fn() -> c_int =
            std::mem::transmute(symbol(c"fake_recording_is_broken"));
        is_broken() != 0
    }
}

/// Sets the calling thread's capture mode; what it was.
pub(super) fn exchange_capture_mode(mut mode: c_int) -> c_int {
    // SAFETY: the signature in `libcuda.c`, and a number to read and to write to.
    unsafe {
        let exchange: unsafe extern "C" fn(*mut c_int) -> c_int =
            std::mem::transmute(symbol(c"cuThreadExchangeStreamCaptureMode"));
        assert_eq!(exchange(&mut mode), 0);
    }
    mode
}

/// The calling thread's context, or null.
pub(super) fn current_context() -> *mut c_void {
    let mut context = std::ptr::null_mut();
    // SAFETY: the signature in `libcuda.c`, and a pointer to write to.
    unsafe {
        let current: unsafe extern "C" fn(*mut *mut c_void) -> c_int =
            std::mem::transmute(symbol(c"cuCtxGetCurrent"));
        assert_eq!(current(&mut context), 0);
    }
    context
}

/// Makes the primary context of a device current on this thread, as an engine does.
pub(super) fn use_device(device: c_int) {
    let mut context = std::ptr::null_mut();
    // SAFETY: the signatures in `libcuda.c`, and a pointer to write to. Its devices' handles begin with 40.
    unsafe {
        let retain: unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int =
            std::mem::transmute(symbol(c"cuDevicePrimaryCtxRetain"));
        let push: unsafe extern "C" fn(*mut c_void) -> c_int =
            std::mem::transmute(symbol(c"cuCtxPushCurrent_v2"));
        assert_eq!((retain(&mut context, 40 + device), push(context)), (0, 0));
    }
}

/// A function of the library.
pub(super) fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: NUL-terminated names; the library is the one that the driver has opened.
    let address = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        libc::dlsym(library, name.as_ptr())
    };
    assert!(!address.is_null(), "{name:?}");
    address
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("kvcache-libcuda-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn fill(&self, found: Found) {
        let library = self.0.join("libcuda.so.1");
        match found {
            Found::Nothing => {}
            Found::Text => fs::write(library, "This is no library.\n".repeat(100)).unwrap(),
            Found::Compiled(options) => {
                let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_driver/libcuda.c");
                let output = Command::new(env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
                    .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
                    .args(options)
                    .arg(source)
                    .arg("-o")
                    .arg(library)
                    .output()
                    .expect("a C compiler, which links this test as well");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const CHILD: &str = "KVCACHE_TEST_CHILD";
const LOG: &str = "FAKE_CUDA_LOG";
const RAN: &str = "the child ran";
