//! The CUDA side of the cache.
//!
//! [`kernels`] holds the compiled copy kernels and the arguments that they take; [`driver`] says what is needed of CUDA,
//! [`engine`] is the copy engine, and [`fake`] is a device without hardware. It builds and is tested where there is neither a
//! driver nor a toolkit.

pub mod driver;
pub mod engine;
pub mod fake;
pub mod kernels;
