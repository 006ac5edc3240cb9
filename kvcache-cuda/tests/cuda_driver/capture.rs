//! While another thread records a CUDA graph, as torch does by default: in the mode "global".

use kvcache_core::copy_engine::Piece;
use kvcache_cuda::driver::{CudaDriver, Driver, Priority, Stream};

use super::library::{
    WHOLE, exchange_capture_mode, fail, graph_is_broken, in_child, record_elsewhere, use_device,
};
use super::open;

/// All that the driver has: it succeeds, and nothing of it reaches the graph.
#[test]
fn no_call_breaks_the_graph_that_another_thread_records() {
    const TEST: &str = "capture::no_call_breaks_the_graph_that_another_thread_records";
    // Whether the context is that of the thread makes a difference to how it is made current.
    for (case, device) in [("ours", 0), ("another", 1)] {
        in_child(TEST, case, WHOLE, &[], || {
            drop(open());
            use_device(device);
            record_elsewhere(true);
            use_all(&CudaDriver::open(0).unwrap());
            assert!(!graph_is_broken());
            // The library does notice.
            assert_eq!(register_unguarded(), 900);
            assert!(graph_is_broken());
        });
    }
}

fn use_all(driver: &CudaDriver) {
    let stream = driver.create_stream(Priority::High).unwrap();
    let event = driver.create_event().unwrap();
    let device = driver.allocate_device(4096).unwrap();
    let host = driver.allocate_host(4096).unwrap();
    let slab = vec![0u8; 8192];
    let base = slab.as_ptr() as usize;
    // SAFETY: the slab lives until the end of this function.
    unsafe { driver.register_host(base, slab.len()) }.unwrap();
    driver.load_kernels().unwrap();
    driver.check_stream(Stream(0)).unwrap();
    // SAFETY: as above, and the library copies at once.
    unsafe { driver.copy(Piece { src: base, dst: host.host, bytes: 4096 }, stream) }.unwrap();
    driver.record_event(event, stream).unwrap();
    driver.wait_event(stream, event).unwrap();
    driver.query_event(event).unwrap();
    driver.synchronize_event(event).unwrap();
    driver.unregister_host(base);
    driver.free_host(host.host);
    driver.free_device(device);
    driver.destroy_event(event);
    driver.destroy_stream(stream);
}

/// As a thread does that does not say that it takes no part.
fn register_unguarded() -> i32 {
    use std::ffi::{c_int, c_uint, c_void};
    let mut slab = vec![0u8; 4096];
    // SAFETY: the signature in `libcuda.c`; the memory is pinned by nobody in the end, as the call is refused.
    unsafe {
        let register: unsafe extern "C" fn(*mut c_void, usize, c_uint) -> c_int =
            std::mem::transmute(super::library::symbol(c"cuMemHostRegister_v2"));
        register(slab.as_mut_ptr().cast(), slab.len(), 0)
    }
}

/// Also where the call fails, and whatever it was.
#[test]
fn a_thread_keeps_its_own_capture_mode() {
    const TEST: &str = "capture::a_thread_keeps_its_own_capture_mode";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        for mode in [0, 1, 2] {
            exchange_capture_mode(mode);
            let event = driver.create_event().unwrap();
            fail(c"cuEventQuery", 700);
            assert_eq!(driver.query_event(event).unwrap_err().code, 700);
            drop(CudaDriver::open(1).unwrap());
            assert_eq!(exchange_capture_mode(mode), mode);
        }
    });
}
