//! RDMA: what the kernel has, what the library sees of it, which port L2 would use, and whether memory can be pinned.

use std::fs;

use kvcache_rdma::verbs::{DeviceInfo, PortWish, Rdma, Unavailable, select};

use super::Finding;
use super::memory::{Limit, memlock};
use kvcache_core::byte_size::ByteSize;

pub(super) fn check() -> Finding {
    let loaded = Rdma::load();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limit = if may_lock_any(&status) { Some(Limit::None) } else { memlock(&limits) };
    let kernel = super::devices::names("/sys/class/infiniband");
    judge(&kernel, loaded.as_ref().map(Rdma::devices).map_err(Clone::clone), limit)
}

fn judge(kernel: &[String], loaded: Result<&[DeviceInfo], Unavailable>, limit: Option<Limit>) -> Finding {
    let kernel_list = kernel.join(", ");
    let finding = match loaded {
        Err(_) if kernel.is_empty() => Finding::fine(
            SUBJECT,
            "no device; L2 goes over TCP, and over shared memory to a server on this host",
        ),
        Err(unavailable) => Finding::degraded(
            SUBJECT,
            format!("the kernel has {kernel_list}, which cannot be used; L2 goes over TCP"),
            unavailable.to_string(),
        ),
        Ok(devices) => judge_devices(devices, limit),
    };
    finding.with("kernel_devices", kernel.to_vec())
}

fn judge_devices(devices: &[DeviceInfo], limit: Option<Limit>) -> Finding {
    let mut found: Vec<String> = Vec::new();
    for device in devices {
        for port in &device.ports {
            let gids: Vec<String> = port.gids.iter().map(|gid| format!("gid {gid}")).collect();
            let address = if gids.is_empty() { "no gid".to_owned() } else { gids.join(", ") };
            found.push(format!(
                "{}:{} {} {}, mtu {}, lid {}, {address}",
                device.name,
                port.number,
                port.state,
                port.link_layer,
                port.active_mtu.bytes(),
                port.lid
            ));
        }
    }
    let names: Vec<String> = devices.iter().map(|device| device.name.clone()).collect();
    let finding = match select(devices, &PortWish::default()) {
        Err(error) => Finding::degraded(SUBJECT, found.join("\n"), format!("L2 goes over TCP: {error}")),
        Ok(selection) => {
            let address = selection.gid.map_or_else(|| "its lid".to_owned(), |gid| format!("gid {gid}"));
            found.push(format!(
                "used unless told otherwise: {}:{} with {address}",
                selection.device, selection.port
            ));
            match limit {
                Some(Limit::Bytes(bytes)) if bytes < LOCKED_BYTES_MIN => Finding::degraded(
                    SUBJECT,
                    found.join("\n"),
                    format!(
                        "the limit of locked memory is {}, and L1 must be registered as a whole: `ulimit -l unlimited`, \
                         `docker run --ulimit memlock=-1`, LimitMEMLOCK=infinity in a systemd unit, or the capability \
                         IPC_LOCK",
                        ByteSize(bytes)
                    ),
                ),
                _ => Finding::fine(SUBJECT, found.join("\n")),
            }
            .with("device", selection.device)
            .with("port", selection.port)
            .with("gid_index", selection.gid.map(|gid| gid.index))
        }
    };
    finding.with("devices", names)
}

/// Whether the process has CAP_IPC_LOCK, for which the limit does not count.
fn may_lock_any(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    capabilities >> IPC_LOCK & 1 == 1
}

const SUBJECT: &str = "RDMA";

/// Number of the capability in `capabilities(7)`.
const IPC_LOCK: u32 = 14;

/// The smallest slab that is worth a network card.
const LOCKED_BYTES_MIN: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use kvcache_rdma::verbs::{Gid, GidKind, Limits, LinkLayer, Mtu, PortInfo, PortState};

    use super::super::Grade;
    use super::*;

    fn device(state: PortState) -> DeviceInfo {
        let mut address = [0; 16];
        address[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
        let port = PortInfo {
            number: 1,
            state,
            link_layer: LinkLayer::Ethernet,
            active_mtu: Mtu::Bytes4096,
            lid: 0,
            message_bytes_max: 1 << 30,
            gids: vec![Gid { index: 3, kind: GidKind::RoceV2, address }],
        };
        let limits = Limits {
            queue_depth_max: 1024,
            segments_max: 16,
            read_segments_max: 16,
            completions_max: 4096,
            reads_as_initiator_max: 16,
            reads_as_target_max: 16,
        };
        DeviceInfo { name: "mlx5_0".to_owned(), ports: vec![port], limits }
    }

    fn kernel() -> Vec<String> {
        vec!["mlx5_0".to_owned()]
    }

    #[test]
    fn a_machine_without_rdma_lacks_nothing() {
        let none = Unavailable::NoLibrary { reason: "libibverbs.so.1: cannot open".to_owned() };
        let finding = judge(&[], Err(none), Some(Limit::Bytes(1 << 16)));
        assert_eq!((finding.grade, finding.remedy), (Grade::Fine, None));
    }

    #[test]
    fn a_device_without_its_library_is_a_loss() {
        let finding = judge(&kernel(), Err(Unavailable::NoDevices), None);
        assert_eq!(finding.grade, Grade::Degraded);
        assert!(finding.found.contains("the kernel has mlx5_0"));
        assert!(finding.remedy.unwrap().contains("ibverbs-providers"));
    }

    #[test]
    fn the_port_that_would_be_used_is_named() {
        let finding = judge(&kernel(), Ok(&[device(PortState::Active)]), Some(Limit::None));
        assert_eq!(finding.grade, Grade::Fine);
        assert_eq!(
            finding.found,
            "mlx5_0:1 active Ethernet, mtu 4096, lid 0, gid 3 RoCE v2 10.0.0.1\n\
             used unless told otherwise: mlx5_0:1 with gid 3 RoCE v2 10.0.0.1"
        );
        assert_eq!((&finding.values["port"], &finding.values["gid_index"]), (&1.into(), &3.into()));
    }

    #[test]
    fn a_link_that_is_down_and_a_low_limit_come_with_remedies() {
        let finding = judge(&kernel(), Ok(&[device(PortState::Down)]), Some(Limit::None));
        assert_eq!(finding.grade, Grade::Degraded);
        assert!(finding.remedy.unwrap().contains("mlx5_0:1 down"));
        let finding = judge(&kernel(), Ok(&[device(PortState::Active)]), Some(Limit::Bytes(8 << 20)));
        assert_eq!(finding.grade, Grade::Degraded);
        assert!(finding.remedy.unwrap().contains("the limit of locked memory is 8 MiB"));
    }

    #[test]
    fn the_capability_lifts_the_limit() {
        assert!(may_lock_any("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lock_any("CapEff:\t00000000a80425fb\n") && !may_lock_any(""));
    }
}
