//! What there is, and why there is nothing.

use std::process::Command;

use kvcache_cuda::driver::{CudaDriver, Driver, Unavailable, devices};

use super::library::{Found, WHOLE, calls, current_context, fail, folder, in_child, use_device};

/// The text of a refusal, which is the same for both ways to ask.
fn refusal() -> String {
    let text = devices().unwrap_err().to_string();
    let Err(error) = CudaDriver::open(0) else { panic!("a driver without a library") };
    assert_eq!(error.to_string(), text);
    text
}

#[test]
fn a_machine_without_driver_is_told_so() {
    const TEST: &str = "opening::a_machine_without_driver_is_told_so";
    in_child(TEST, "text", Found::Text, &[], || {
        assert_eq!(
            refusal(),
            format!(
                "CUDA unavailable: {}/libcuda.so.1: invalid ELF header; install the NVIDIA driver, or give the container its \
                 GPUs (docker run --gpus all)",
                folder().display()
            )
        );
    });
    in_child(TEST, "nothing", Found::Nothing, &[], || match devices() {
        Err(error @ Unavailable::NoLibrary { .. }) => assert_eq!(
            error.to_string(),
            "CUDA unavailable: libcuda.so.1: cannot open shared object file: No such file or directory; install the NVIDIA \
             driver, or give the container its GPUs (docker run --gpus all)"
        ),
        other => eprintln!("this machine has a driver, which cannot be hidden: {other:?}"),
    });
}

#[test]
fn the_toolkits_stub_is_no_driver() {
    const TEST: &str = "opening::the_toolkits_stub_is_no_driver";
    in_child(TEST, "", WHOLE, &[("FAKE_CUDA_INIT", "34")], || {
        assert_eq!(
            refusal(),
            format!(
                "CUDA unavailable: {}/libcuda.so.1 is a stub for linking, not a driver (CUDA_ERROR_STUB_LIBRARY); take its \
                 folder out of LD_LIBRARY_PATH",
                folder().display()
            )
        );
    });
}

#[test]
fn an_old_driver_is_named_by_its_version() {
    const TEST: &str = "opening::an_old_driver_is_named_by_its_version";
    let text = "CUDA unavailable: the driver is of CUDA 11.4, and 12.0 is the oldest that can be used; update it to release \
                525 or newer";
    let version = [("FAKE_CUDA_VERSION", "11040")];
    in_child(TEST, "whole", WHOLE, &version, || assert_eq!(refusal(), text));
    let lacking = Found::Compiled(&["-DWITHOUT_EVENT_QUERY"]);
    in_child(TEST, "lacking", lacking, &version, || assert_eq!(refusal(), text));
    in_child(TEST, "oldest", WHOLE, &[("FAKE_CUDA_VERSION", "12000")], || {
        assert_eq!(devices().unwrap().len(), 2);
    });
}

#[test]
fn a_library_that_lacks_a_function_is_no_driver() {
    const TEST: &str = "opening::a_library_that_lacks_a_function_is_no_driver";
    in_child(TEST, "", Found::Compiled(&["-DWITHOUT_EVENT_QUERY"]), &[], || {
        assert_eq!(
            refusal(),
            "CUDA unavailable: libcuda.so.1 has no function cuEventQuery: it is not a whole NVIDIA driver; install it again"
        );
    });
}

#[test]
fn no_device_is_explained_with_the_variable_that_hides_them() {
    const TEST: &str = "opening::no_device_is_explained_with_the_variable_that_hides_them";
    let text = "CUDA unavailable: the driver sees no device (CUDA_ERROR_NO_DEVICE); `nvidia-smi -L` lists all, and \
                CUDA_VISIBLE_DEVICES is";
    in_child(TEST, "start", WHOLE, &[("FAKE_CUDA_INIT", "100")], || {
        assert_eq!(refusal(), format!("{text} not set"));
    });
    let none = [("FAKE_CUDA_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "-1")];
    in_child(TEST, "count", WHOLE, &none, || assert_eq!(refusal(), format!("{text} \"-1\"")));
}

#[test]
fn other_failures_have_the_drivers_code_and_name() {
    const TEST: &str = "opening::other_failures_have_the_drivers_code_and_name";
    in_child(TEST, "known", WHOLE, &[("FAKE_CUDA_INIT", "803")], || {
        assert_eq!(
            refusal(),
            "CUDA unavailable: cuInit failed: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803); see what `nvidia-smi` and the kernel's \
             log say"
        );
    });
    in_child(TEST, "new", WHOLE, &[("FAKE_CUDA_INIT", "12345")], || {
        assert!(
            refusal().contains("cuInit failed: a status that this driver does not name (12345);"),
            "{}",
            refusal()
        );
    });
    in_child(TEST, "context", WHOLE, &[], || {
        assert_eq!(devices().unwrap().len(), 2);
        fail(c"cuDevicePrimaryCtxRetain", 2);
        let Err(error) = CudaDriver::open(0) else { panic!("a driver without a context") };
        assert!(
            error.to_string().contains("cuDevicePrimaryCtxRetain failed: CUDA_ERROR_OUT_OF_MEMORY (2);"),
            "{error}"
        );
    });
}

#[test]
fn devices_are_described_without_touching_them() {
    const TEST: &str = "opening::devices_are_described_without_touching_them";
    in_child(TEST, "", WHOLE, &[("FAKE_CUDA_VERSION", "12090")], || {
        let devices = devices().unwrap();
        assert_eq!(devices.len(), 2);
        let second = &devices[1];
        assert_eq!((second.ordinal, second.name.as_str()), (1, "Fake GPU 1"));
        assert_eq!(second.pci_address, "0000:2b:00.0");
        assert_eq!((second.compute_capability, second.multiprocessors), ((9, 0), 132));
        assert_eq!((second.memory_bytes, second.driver_version), (141 << 30, 12_090));
        assert!(second.host_addresses_are_shared);
        assert!(calls().is_empty());
        assert_eq!(CudaDriver::open(1).unwrap().device(), second);
    });
}

#[test]
fn a_device_that_is_not_there_is_refused_with_their_number() {
    const TEST: &str = "opening::a_device_that_is_not_there_is_refused_with_their_number";
    in_child(TEST, "", WHOLE, &[("CUDA_VISIBLE_DEVICES", "3,5")], || {
        for ordinal in [2, u32::MAX] {
            let Err(error) = CudaDriver::open(ordinal) else { panic!("a third device") };
            assert_eq!(
                error.to_string(),
                format!(
                    "CUDA unavailable: no device {ordinal}: this process sees 2, numbered from 0, and CUDA_VISIBLE_DEVICES is \
                     \"3,5\""
                )
            );
        }
    });
}

#[test]
fn the_primary_context_is_shared_and_given_back() {
    const TEST: &str = "opening::the_primary_context_is_shared_and_given_back";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = super::open();
        // A thread without a context has none afterwards.
        driver.create_event().unwrap();
        assert_eq!(calls(), ["push 0", "event 0: context 0 flags 3", "pop 0"]);
        assert!(current_context().is_null());
        // Another device's stays current, also when the call fails.
        use_device(1);
        let engine = current_context();
        driver.create_event().unwrap();
        driver.allocate_device(0).unwrap_err();
        assert_eq!(current_context(), engine);
        assert_eq!(
            calls(),
            ["retain 1: 1", "push 1", "push 0", "event 1: context 0 flags 3", "pop 0", "push 0", "pop 0"]
        );
        // Its own costs nothing.
        use_device(0);
        calls();
        driver.create_event().unwrap();
        assert_eq!(calls(), ["event 2: context 0 flags 3"]);
        // The engine's reference stays.
        drop(driver);
        assert_eq!(calls(), ["release 0: 1"]);
    });
}

/// The driver is looked for at run time only, so that the program starts anywhere.
#[test]
fn this_program_links_no_library_of_cuda() {
    let program = std::env::current_exe().unwrap();
    let output = Command::new("readelf").arg("-dW").arg(program).output().expect("readelf, of binutils");
    let text = String::from_utf8_lossy(&output.stdout);
    let needed: Vec<&str> = text.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.iter().any(|line| line.contains("[libc.so.6]")), "{text}");
    assert!(!needed.iter().any(|line| line.contains("[libcu") || line.contains("[libnv")), "{needed:?}");
}
