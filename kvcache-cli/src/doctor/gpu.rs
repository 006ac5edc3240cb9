//! GPUs: what CUDA's driver sees of them, and which ways of copying it has.

use std::fs;
use std::path::Path;

use kvcache_cuda::driver::{BATCH_COPY_VERSION, DeviceInfo, Unavailable, devices, numa_node};
use kvcache_cuda::kernels::{Support, support};
use serde_json::{Value, json};

use super::Finding;
use kvcache_core::byte_size::ByteSize;

pub(super) fn check() -> Finding {
    let version = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let kernel = Kernel { release: release(&version), device: Path::new("/dev/nvidiactl").exists() };
    judge(&kernel, devices(), numa_node)
}

/// What the system has of NVIDIA, whether or not this process can use it.
struct Kernel<'a> {
    release: Option<&'a str>,
    device: bool,
}

fn judge(
    kernel: &Kernel<'_>,
    devices: Result<Vec<DeviceInfo>, Unavailable>,
    numa_node: impl Fn(&DeviceInfo) -> Option<u32>,
) -> Finding {
    let finding = match devices {
        Ok(devices) => judge_devices(kernel, &devices, numa_node),
        Err(reason) => {
            let reason_text = reason.to_string();
            let finding = match (kernel.release, kernel.device) {
                (None, false) => Finding::fine(SUBJECT, format!("none; {reason_text}")),
                (release, _) => {
                    let release = release.unwrap_or("of unknown release");
                    Finding::degraded(
                        SUBJECT,
                        format!("NVIDIA driver {release}, which cannot be used"),
                        &reason_text,
                    )
                }
            };
            finding.with("unavailable", reason_text)
        }
    };
    finding.with("driver", kernel.release)
}

fn judge_devices(
    kernel: &Kernel<'_>,
    devices: &[DeviceInfo],
    numa_node: impl Fn(&DeviceInfo) -> Option<u32>,
) -> Finding {
    let mut found: Vec<String> = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    let mut remedies: Vec<&str> = Vec::new();
    for device in devices {
        let (major, minor) = device.compute_capability;
        let node = numa_node(device);
        let node_text = node.map_or_else(String::new, |node| format!(", NUMA node {node}"));
        let (name, address) = (&device.name, &device.pci_address);
        let memory = ByteSize(device.memory_bytes);
        let (kernels, kernels_text, remedy) =
            copy_kernels(support(device.compute_capability, device.driver_version));
        found.push(format!(
            "{}: {name}, compute capability {major}.{minor}, {memory}, {address}{node_text}; {kernels_text}",
            device.ordinal
        ));
        remedies.extend(remedy);
        values.push(json!({
            "ordinal": device.ordinal,
            "name": name,
            "compute_capability": format!("{major}.{minor}"),
            "memory_bytes": device.memory_bytes,
            "pci_address": address,
            "numa_node": node,
            "copy_kernels": kernels,
        }));
    }
    // One driver for all of them.
    let version = devices.first().map_or(0, |device| device.driver_version);
    let cuda = format!("{}.{}", version / 1000, version % 1000 / 10);
    let shared = devices.iter().all(|device| device.host_addresses_are_shared);
    let batch_copies = version >= BATCH_COPY_VERSION && shared;
    if version < BATCH_COPY_VERSION {
        remedies.push(
            "many small copies are slow: update the driver to release 570 or newer, which copies in batches",
        );
    }
    let release = kernel.release.map_or_else(String::new, |release| format!(" {release}"));
    let batch_text = match (batch_copies, shared) {
        (true, _) => "batch copies",
        (false, true) => "no batch copies",
        (false, false) => "no batch copies, as a device does not take the host's addresses of pinned memory",
    };
    found.push(format!("driver{release} of CUDA {cuda}: {batch_text}"));
    remedies.dedup();
    let finding = if remedies.is_empty() {
        Finding::fine(SUBJECT, found.join("\n"))
    } else {
        Finding::degraded(SUBJECT, found.join("\n"), remedies.join("; "))
    };
    finding.with("devices", values).with("cuda", cuda).with("batch_copies", batch_copies)
}

/// The copy kernels on a device: a word, a text, and what to do.
fn copy_kernels(support: Support) -> (&'static str, &'static str, Option<&'static str>) {
    match support {
        Support::Code => ("code", "copy kernels", None),
        Support::Ptx => ("ptx", "copy kernels, which the driver compiles when they are loaded first", None),
        Support::OldDriver => (
            "old driver",
            "no copy kernels",
            Some("the copy kernels need CUDA 13.0: update the driver to release 580 or newer"),
        ),
        Support::OldDevice => (
            "old device",
            "no copy kernels",
            Some(
                "the copy kernels need compute capability 8.0 or newer; plain copies are used, which are slow for small pieces",
            ),
        ),
    }
}

/// The release in a line such as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar ...`.
fn release(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

const SUBJECT: &str = "GPU";

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    const KERNEL: Kernel<'static> = Kernel { release: Some("580.65.06"), device: true };

    fn device(ordinal: u32, compute_capability: (u32, u32), driver_version: u32) -> DeviceInfo {
        DeviceInfo {
            ordinal,
            name: "NVIDIA H200".to_owned(),
            pci_address: "0000:1b:00.0".to_owned(),
            compute_capability,
            multiprocessors: 132,
            memory_bytes: 141 << 30,
            driver_version,
            host_addresses_are_shared: true,
        }
    }

    #[test]
    fn releases_are_read_from_both_kinds_of_kernel_module() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc 12.3.0\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n";
        assert_eq!(release(closed), Some("550.54.15"));
        assert_eq!(release(open), Some("575.57.08"));
        assert_eq!(release(""), None);
    }

    #[test]
    fn a_machine_without_gpu_is_fine_and_one_that_cannot_use_its_own_is_not() {
        let reason = || Unavailable::OldDriver { version: 11_040 };
        let none = judge(&Kernel { release: None, device: false }, Err(reason()), |_| None);
        assert_eq!((none.grade, none.found), (Grade::Fine, format!("none; {}", reason())));
        assert_eq!(none.values["driver"], Value::Null);
        assert_eq!(none.values["unavailable"], reason().to_string());
        let unused = judge(&Kernel { release: Some("470.1"), device: true }, Err(reason()), |_| None);
        assert_eq!(unused.grade, Grade::Degraded);
        assert_eq!(unused.found, "NVIDIA driver 470.1, which cannot be used");
        assert_eq!(unused.remedy, Some(reason().to_string()));
        let hidden = judge(&Kernel { release: None, device: true }, Err(reason()), |_| None);
        assert_eq!(hidden.found, "NVIDIA driver of unknown release, which cannot be used");
    }

    #[test]
    fn devices_are_listed_with_what_copies_them() {
        let devices = vec![device(0, (9, 0), 13_000), device(1, (12, 0), 13_000)];
        let finding = judge(&KERNEL, Ok(devices), |device| (device.ordinal == 0).then_some(1));
        assert_eq!(finding.grade, Grade::Fine);
        assert_eq!(
            finding.found,
            "0: NVIDIA H200, compute capability 9.0, 141 GiB, 0000:1b:00.0, NUMA node 1; copy kernels\n\
             1: NVIDIA H200, compute capability 12.0, 141 GiB, 0000:1b:00.0; copy kernels, which the driver compiles when they \
             are loaded first\n\
             driver 580.65.06 of CUDA 13.0: batch copies"
        );
        let values = &finding.values;
        assert_eq!((&values["cuda"], &values["batch_copies"]), (&json!("13.0"), &json!(true)));
        assert_eq!(values["devices"][0]["numa_node"], 1);
        assert_eq!(values["devices"][1]["numa_node"], Value::Null);
        assert_eq!(values["devices"][1]["copy_kernels"], "ptx");
    }

    #[test]
    fn a_device_that_does_not_take_host_addresses_has_no_batches_and_no_remedy() {
        let other = DeviceInfo { host_addresses_are_shared: false, ..device(0, (9, 0), 13_000) };
        let finding = judge(&KERNEL, Ok(vec![other]), |_| None);
        assert_eq!((finding.grade, &finding.remedy), (Grade::Fine, &None));
        assert_eq!(finding.values["batch_copies"], json!(false));
        assert!(
            finding.found.ends_with(
                ": no batch copies, as a device does not take the host's addresses of pinned memory"
            ),
            "{}",
            finding.found
        );
    }

    #[test]
    fn what_an_old_driver_lacks_is_said_once() {
        let devices = vec![device(0, (9, 0), 12_060), device(1, (9, 0), 12_060)];
        let finding = judge(&Kernel { release: None, device: true }, Ok(devices), |_| None);
        assert_eq!(finding.grade, Grade::Degraded);
        assert!(finding.found.ends_with("; no copy kernels\ndriver of CUDA 12.6: no batch copies"));
        assert_eq!(
            finding.remedy.as_deref(),
            Some(
                "the copy kernels need CUDA 13.0: update the driver to release 580 or newer; many small copies are slow: update \
                 the driver to release 570 or newer, which copies in batches"
            )
        );
        let old = judge(&KERNEL, Ok(vec![device(0, (7, 5), 13_000)]), |_| None);
        assert!(old.remedy.is_some_and(|remedy| remedy.contains("compute capability 8.0")));
    }
}
