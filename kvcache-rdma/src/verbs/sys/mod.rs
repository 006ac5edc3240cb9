//! libibverbs as it is: its structures, and its functions looked up at run time. Nothing here is safe by itself.
//!
//! The library is never linked. A machine without it, or without a device, loads and runs this crate all the same,
//! and is told why there is no RDMA. A copy of the library is never shipped either: it must fit the drivers of the
//! host, which are loaded by it and by every other user of RDMA in the process.

pub(super) mod abi;
#[cfg(test)]
mod abi_tests;
mod library;

pub(super) use library::Library;
