//! Memory of the device, and of the host as the device sees it.

use kvcache_cuda::driver::Driver;

use super::library::{WHOLE, calls, fail, in_child, use_device};
use super::open;

/// How far the library maps host memory from where it is.
const MAPPED_AT: u64 = 0x7000_0000_0000;

#[test]
fn memory_is_allocated_mapped_and_freed() {
    const TEST: &str = "memory::memory_is_allocated_mapped_and_freed";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        use_device(0);
        calls();
        let device = driver.allocate_device(1000).unwrap();
        assert_eq!(device % 256, 0);
        driver.free_device(device);
        let host = driver.allocate_host(5000).unwrap();
        assert_eq!(host.device, host.host as u64 + MAPPED_AT);
        driver.free_host(host.host);
        assert_eq!(
            calls(),
            [
                "device memory of 1000",
                "device memory freed",
                "host memory of 5000 flags 3",
                "host memory freed"
            ]
        );
        fail(c"cuMemAlloc", 2);
        assert_eq!(
            driver.allocate_device(1 << 20).unwrap_err().to_string(),
            "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (2)"
        );
        // Memory that cannot be mapped is not kept.
        fail(c"cuMemHostGetDevicePointer", 1);
        assert_eq!(driver.allocate_host(5000).unwrap_err().operation, "cuMemHostGetDevicePointer");
        assert_eq!(calls(), ["host memory of 5000 flags 3", "host memory freed"]);
    });
}

#[test]
fn memory_of_others_is_registered_and_unregistered() {
    const TEST: &str = "memory::memory_of_others_is_registered_and_unregistered";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        use_device(0);
        calls();
        let slab = vec![0u8; 8192];
        let base = slab.as_ptr() as usize;
        // SAFETY: the memory lives until the end of this function.
        let register = || unsafe { driver.register_host(base, slab.len()) };
        assert_eq!(register(), Ok(base as u64 + MAPPED_AT));
        driver.unregister_host(base);
        assert_eq!(calls(), ["registered 8192 flags 3", "unregistered"]);
        fail(c"cuMemHostRegister", 2);
        assert_eq!(
            register().unwrap_err().to_string(),
            "cuMemHostRegister failed: CUDA_ERROR_OUT_OF_MEMORY (2)"
        );
        assert!(calls().is_empty());
        fail(c"cuMemHostGetDevicePointer", 1);
        assert_eq!(
            register().unwrap_err().to_string(),
            "cuMemHostGetDevicePointer failed: CUDA_ERROR_INVALID_VALUE (1)"
        );
        assert_eq!(calls(), ["registered 8192 flags 3", "unregistered"]);
    });
}
