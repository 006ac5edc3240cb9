//! Gives the shared library its soname: cargo sets none, and programs would then ask for the file's name.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkvcache.so.{major}");
}
