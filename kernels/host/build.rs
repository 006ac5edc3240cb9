//! Compiles the kernels as host C++ with sanitizers. Where the C++ compiler or its sanitizers are missing, the tests are
//! reported as ignored, with this reason.

use std::env;
use std::path::Path;
use std::process::Command;

/// -O1: AddressSanitizer's own choice between speed and stack traces. No strict aliasing, because the kernels see memory
/// as vectors, as CUDA C++ allows.
const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O1",
    "-g",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(sanitizers)");
    for source in ["main.cpp", "shim.h", "../paged_copy.cu", "../paged_copy.h"] {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-env-changed=CXX");
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let folder = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let program = Path::new(&folder).join("kernels-on-cpu");
    println!("cargo::rustc-env=KERNELS_ON_CPU={}", program.display());

    // A program of one line tells a missing sanitizer from an error in our sources.
    let probe = Path::new(&folder).join("probe.cpp");
    std::fs::write(&probe, "int main() { return 0; }\n").expect("OUT_DIR can be written");
    let compiled = Command::new(&compiler).args(FLAGS).arg(&probe).arg("-o").arg(&program).output();
    let runs = |program: &Path| Command::new(program).output().is_ok_and(|ran| ran.status.success());
    if !(compiled.is_ok_and(|compiled| compiled.status.success()) && runs(&program)) {
        // A file that never exists: look again each time, the compiler may have come.
        println!("cargo::rerun-if-changed=compiler-is-missing");
        println!(
            "cargo::warning={compiler} with AddressSanitizer is missing or does not work (Debian: apt-get install g++): \
             tests of the kernels are ignored"
        );
        return;
    }
    let output = Command::new(&compiler)
        .args(FLAGS)
        .args(["main.cpp", "-o"])
        .arg(&program)
        .output()
        .expect("the compiler has just run");
    assert!(
        output.status.success(),
        "{compiler} refuses the kernels:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("cargo::rustc-cfg=sanitizers");
}
