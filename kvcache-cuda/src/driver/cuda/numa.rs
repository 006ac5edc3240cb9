//! Where a device is in the machine.

use std::fs;
use std::path::Path;

use crate::driver::DeviceInfo;

/// The NUMA node that the device is attached to: host memory there is read and written at the link's full speed. `None`
/// where the system does not say, as on machines with one node and in many virtual machines.
pub fn numa_node(device: &DeviceInfo) -> Option<u32> {
    node_under(Path::new("/sys/bus/pci/devices"), &device.pci_address)
}

fn node_under(devices: &Path, pci_address: &str) -> Option<u32> {
    // -1 stands for none, and is no number without a sign.
    fs::read_to_string(devices.join(pci_address).join("numa_node")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_read_from_the_kernels_folder_of_the_device() {
        let folder = std::env::temp_dir().join(format!("kvcache-numa-{}", std::process::id()));
        for (address, text) in [("0000:1b:00.0", "1\n"), ("0000:9a:00.0", "-1\n"), ("0000:9b:00.0", "")] {
            fs::create_dir_all(folder.join(address)).unwrap();
            fs::write(folder.join(address).join("numa_node"), text).unwrap();
        }
        let nodes = ["0000:1b:00.0", "0000:9a:00.0", "0000:9b:00.0", "0000:00:00.0"]
            .map(|address| node_under(&folder, address));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(nodes, [Some(1), None, None, None]);
    }
}
