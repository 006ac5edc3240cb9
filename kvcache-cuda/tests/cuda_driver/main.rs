//! The driver, against a library that is compiled by the test and checks what it is called with. Where there is no C
//! compiler these tests do not link either.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod capture;
mod library;
mod memory;
mod opening;
mod streams;
mod work;

use std::sync::Arc;

use kvcache_cuda::driver::CudaDriver;

/// The first device, in a child.
fn open() -> Arc<CudaDriver> {
    let driver = CudaDriver::open(0).unwrap();
    assert_eq!(library::calls(), ["retain 0: 1"]);
    driver
}
