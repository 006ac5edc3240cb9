//! The CUDA side of the cache.
//!
//! [`kernels`] holds the compiled copy kernels and the arguments that they take. It calls no CUDA: it builds and is
//! tested where there is neither a driver nor a toolkit.

pub mod kernels;
