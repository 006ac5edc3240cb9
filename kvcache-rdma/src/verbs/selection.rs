//! Which device, port and address to use: what the user asks for, checked against what there is.
//!
//! A wish is never exchanged for something else. The stock client takes the first device when the named one is not
//! there, and users find out by traffic on the wrong network, or by none.

use super::port::{DeviceInfo, Gid, GidKind, LinkLayer, PortInfo, PortState};

/// What the user asks for. The default asks for nothing: the first port that is active.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PortWish {
    /// The device's name.
    pub device: Option<String>,
    /// The port's number, counted from 1.
    pub port: Option<u8>,
    /// Place in the port's table of addresses.
    pub gid_index: Option<u32>,
}

/// A port that can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSelection {
    /// The device's name.
    pub device: String,
    /// The port's number.
    pub port: u8,
    /// The address; `None` on InfiniBand, where the LID is enough inside of a subnet.
    pub gid: Option<Gid>,
}

/// Why no port fits a wish. Each says what there is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectionError {
    /// No device has that name.
    #[error("there is no RDMA device {wanted:?}; there are: {found}")]
    NoSuchDevice {
        /// The name asked for.
        wanted: String,
        /// The names that there are.
        found: String,
    },
    /// The device has no port of that number.
    #[error("RDMA device {device} has no port {wanted}; its ports are: {found}")]
    NoSuchPort {
        /// The device.
        device: String,
        /// The number asked for.
        wanted: u8,
        /// The numbers that there are.
        found: String,
    },
    /// The port that was asked for is not active.
    #[error("port {port} of RDMA device {device} is {state}; bring its link up")]
    PortNotActive {
        /// The device.
        device: String,
        /// The port.
        port: u8,
        /// Its state.
        state: PortState,
    },
    /// No port is active.
    #[error("no RDMA port is active: {found}; bring a link up")]
    NoActivePort {
        /// All ports looked at, with their states.
        found: String,
    },
    /// The table of addresses has nothing at that place.
    #[error("port {port} of RDMA device {device} has no GID {wanted}; its GIDs are: {found}")]
    NoSuchGid {
        /// The device.
        device: String,
        /// The port.
        port: u8,
        /// The place asked for.
        wanted: u32,
        /// The addresses that there are.
        found: String,
    },
    /// The port is an Ethernet port, and none of its addresses is RoCE v2.
    #[error(
        "port {port} of RDMA device {device} has no RoCE v2 GID; its GIDs are: {found}; give its network interface an IP \
         address, or ask for a RoCE v1 GID by its index"
    )]
    NoRoutableGid {
        /// The device.
        device: String,
        /// The port.
        port: u8,
        /// The addresses that there are.
        found: String,
    },
}

/// Finds the port and address for a wish.
///
/// Without a wish: the first active port whose address can be used; on Ethernet a RoCE v2 address, preferably of IPv4
/// (all that stock peers take), then one that is not link-local.
///
/// # Errors
/// See [`SelectionError`]; `devices` must not be empty for its messages to be of use.
pub fn select(devices: &[DeviceInfo], wish: &PortWish) -> Result<PortSelection, SelectionError> {
    let devices: Vec<&DeviceInfo> = match &wish.device {
        None => devices.iter().collect(),
        Some(wanted) => {
            let device = devices.iter().find(|device| device.name == *wanted).ok_or_else(|| {
                SelectionError::NoSuchDevice {
                    wanted: wanted.clone(),
                    found: list(devices.iter().map(|device| &device.name)),
                }
            })?;
            vec![device]
        }
    };
    let mut candidates: Vec<(&DeviceInfo, &PortInfo)> =
        devices.iter().flat_map(|device| device.ports.iter().map(|port| (*device, port))).collect();
    if let Some(wanted) = wish.port {
        candidates.retain(|(_, port)| port.number == wanted);
        if candidates.is_empty() {
            let device = devices.first();
            return Err(SelectionError::NoSuchPort {
                device: device.map_or_else(String::new, |device| device.name.clone()),
                wanted,
                found: list(device.iter().flat_map(|device| &device.ports).map(|port| port.number)),
            });
        }
    }
    let active: Vec<_> = candidates.iter().filter(|(_, port)| port.state == PortState::Active).collect();
    if active.is_empty() {
        if let ([(device, port)], Some(_)) = (candidates.as_slice(), wish.port) {
            return Err(SelectionError::PortNotActive {
                device: device.name.clone(),
                port: port.number,
                state: port.state,
            });
        }
        return Err(SelectionError::NoActivePort {
            found: list(
                candidates
                    .iter()
                    .map(|(device, port)| format!("{}:{} {}", device.name, port.number, port.state)),
            ),
        });
    }
    // The first port with a fitting address; the first port's reason when no port has one.
    let mut first_error = None;
    for (device, port) in active {
        match gid(device, port, wish.gid_index) {
            Ok(gid) => return Ok(PortSelection { device: device.name.clone(), port: port.number, gid }),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or(SelectionError::NoActivePort { found: "none".to_owned() }))
}

fn gid(device: &DeviceInfo, port: &PortInfo, wanted: Option<u32>) -> Result<Option<Gid>, SelectionError> {
    if let Some(wanted) = wanted {
        return port.gids.iter().find(|gid| gid.index == wanted).copied().map(Some).ok_or_else(|| {
            SelectionError::NoSuchGid {
                device: device.name.clone(),
                port: port.number,
                wanted,
                found: list(&port.gids),
            }
        });
    }
    if port.link_layer == LinkLayer::InfiniBand {
        return Ok(None);
    }
    port.gids
        .iter()
        .filter(|gid| gid.kind == GidKind::RoceV2)
        .min_by_key(|gid| (!gid.is_ipv4(), gid.is_link_local(), gid.index))
        .copied()
        .map(Some)
        .ok_or_else(|| SelectionError::NoRoutableGid {
            device: device.name.clone(),
            port: port.number,
            found: list(&port.gids),
        })
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::port::{Limits, Mtu};
    use super::*;

    const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const GLOBAL: [u8; 16] = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];

    fn port(number: u8, state: PortState, link_layer: LinkLayer, gids: &[(GidKind, [u8; 16])]) -> PortInfo {
        let gids = gids.iter().zip(0..).map(|((kind, address), index)| Gid {
            index,
            kind: *kind,
            address: *address,
        });
        PortInfo {
            number,
            state,
            link_layer,
            active_mtu: Mtu::Bytes1024,
            lid: 7,
            message_bytes_max: 1 << 30,
            gids: gids.collect(),
        }
    }

    fn device(name: &str, ports: Vec<PortInfo>) -> DeviceInfo {
        let limits = Limits {
            queue_depth_max: 1024,
            segments_max: 16,
            read_segments_max: 16,
            completions_max: 4096,
            reads_as_initiator_max: 16,
            reads_as_target_max: 16,
        };
        DeviceInfo { name: name.to_owned(), ports, limits }
    }

    fn machine() -> Vec<DeviceInfo> {
        let roce = [
            (GidKind::RoceV1, LINK_LOCAL),
            (GidKind::RoceV2, LINK_LOCAL),
            (GidKind::RoceV2, GLOBAL),
            (GidKind::RoceV2, MAPPED),
        ];
        vec![
            device("mlx5_0", vec![port(1, PortState::Down, LinkLayer::Ethernet, &roce)]),
            device(
                "mlx5_1",
                vec![
                    port(1, PortState::Active, LinkLayer::Ethernet, &roce),
                    port(2, PortState::Armed, LinkLayer::Ethernet, &roce),
                ],
            ),
            device(
                "mlx5_2",
                vec![port(1, PortState::Active, LinkLayer::InfiniBand, &[(GidKind::InfiniBand, LINK_LOCAL)])],
            ),
        ]
    }

    fn wish(device: Option<&str>, port: Option<u8>, gid_index: Option<u32>) -> PortWish {
        PortWish { device: device.map(str::to_owned), port, gid_index }
    }

    #[test]
    fn without_a_wish_the_first_active_port_and_its_ipv4_address_are_taken() {
        let selection = select(&machine(), &PortWish::default()).unwrap();
        assert_eq!((selection.device.as_str(), selection.port), ("mlx5_1", 1));
        assert_eq!(selection.gid.unwrap().index, 3);
    }

    #[test]
    fn the_next_best_address_is_routable_ipv6_then_link_local() {
        let gids = [(GidKind::RoceV2, LINK_LOCAL), (GidKind::RoceV2, GLOBAL)];
        for (count, index) in [(2, 1), (1, 0)] {
            let one = device("one", vec![port(1, PortState::Active, LinkLayer::Ethernet, &gids[..count])]);
            assert_eq!(select(&[one], &PortWish::default()).unwrap().gid.unwrap().index, index);
        }
    }

    #[test]
    fn infiniband_needs_no_address() {
        let selection = select(&machine(), &wish(Some("mlx5_2"), None, None)).unwrap();
        assert_eq!(selection.gid, None);
        let selection = select(&machine(), &wish(Some("mlx5_2"), None, Some(0))).unwrap();
        assert_eq!(selection.gid.unwrap().kind, GidKind::InfiniBand);
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_an_error_that_says_what_there_is() {
        for (wish, text) in [
            (wish(Some("mlx5_9"), None, None), "there are: mlx5_0, mlx5_1, mlx5_2"),
            (wish(Some("mlx5_1"), Some(3), None), "mlx5_1 has no port 3; its ports are: 1, 2"),
            (wish(Some("mlx5_1"), Some(2), None), "port 2 of RDMA device mlx5_1 is armed"),
            (wish(Some("mlx5_0"), None, None), "no RDMA port is active: mlx5_0:1 down"),
            (wish(Some("mlx5_1"), Some(1), Some(8)), "has no GID 8; its GIDs are: 0 RoCE v1 fe80::1"),
        ] {
            let error = select(&machine(), &wish).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_port_with_roce_v1_alone_must_be_asked_for() {
        let only_v1 = [(GidKind::RoceV1, LINK_LOCAL)];
        let one = [device("one", vec![port(1, PortState::Active, LinkLayer::Ethernet, &only_v1)])];
        let error = select(&one, &PortWish::default()).unwrap_err();
        assert!(matches!(error, SelectionError::NoRoutableGid { .. }), "{error}");
        assert_eq!(select(&one, &wish(None, None, Some(0))).unwrap().gid.unwrap().kind, GidKind::RoceV1);
    }
}
