//! Devices, their ports and the addresses of a port, as plain values.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A device and its ports, as found when it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// The kernel's name, such as `mlx5_0` or `rxe0`.
    pub name: String,
    /// Its ports, in the order of their numbers.
    pub ports: Vec<PortInfo>,
    /// What a queue pair of it can do.
    pub limits: Limits,
}

/// A port of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Counted from 1.
    pub number: u8,
    /// Whether it can carry traffic.
    pub state: PortState,
    /// InfiniBand or Ethernet (RoCE).
    pub link_layer: LinkLayer,
    /// The largest packet payload of the link as it is.
    pub active_mtu: Mtu,
    /// Address in an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// Bytes of the longest message.
    pub message_bytes_max: u32,
    /// Its addresses; empty entries of the table are left out.
    pub gids: Vec<Gid>,
}

/// An address of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gid {
    /// Its place in the port's table, which is what a queue pair is given.
    pub index: u32,
    /// Which packets it stands for.
    pub kind: GidKind,
    /// The address itself.
    pub address: [u8; 16],
}

impl Gid {
    /// The IP address behind a RoCE v2 address: IPv4 where it is mapped.
    pub fn ip(&self) -> IpAddr {
        let address = Ipv6Addr::from(self.address);
        address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
    }

    /// Whether it stands for an IPv4 address.
    pub fn is_ipv4(&self) -> bool {
        self.ip().is_ipv4()
    }

    /// Whether it is valid on its link only (`fe80::/10`), so that no router forwards it.
    pub fn is_link_local(&self) -> bool {
        self.address[0] == 0xfe && self.address[1] & 0xc0 == 0x80
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.index, self.kind, self.ip())
    }
}

/// The kind of a [`Gid`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RDMA over Ethernet frames: not routed.
    RoceV1,
    /// RDMA over UDP: routed like any other.
    RoceV2,
    /// A number that this version does not know.
    Other(u32),
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GidKind::InfiniBand => f.write_str("IB"),
            GidKind::RoceV1 => f.write_str("RoCE v1"),
            GidKind::RoceV2 => f.write_str("RoCE v2"),
            GidKind::Other(number) => write!(f, "kind {number}"),
        }
    }
}

/// Whether a port carries traffic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum PortState {
    /// No link.
    Down,
    /// A link that is being brought up.
    Initializing,
    /// A link that waits for its subnet manager.
    Armed,
    /// Ready.
    Active,
    /// A number that this version does not know.
    Other(i32),
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortState::Down => f.write_str("down"),
            PortState::Initializing => f.write_str("initializing"),
            PortState::Armed => f.write_str("armed"),
            PortState::Active => f.write_str("active"),
            PortState::Other(number) => write!(f, "state {number}"),
        }
    }
}

/// What is below RDMA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LinkLayer {
    /// InfiniBand: addressed by LID inside of a subnet.
    InfiniBand,
    /// Ethernet (RoCE): addressed by GID.
    Ethernet,
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkLayer::InfiniBand => "InfiniBand",
            LinkLayer::Ethernet => "Ethernet",
        })
    }
}

/// The payload of a packet, in the five sizes that exist. Its discriminant is the number used by verbs and on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mtu {
    /// 256 bytes.
    Bytes256 = 1,
    /// 512 bytes.
    Bytes512,
    /// 1024 bytes: what fits into an Ethernet frame of 1500.
    Bytes1024,
    /// 2048 bytes.
    Bytes2048,
    /// 4096 bytes: needs Ethernet frames of 4200 or more.
    Bytes4096,
}

impl Mtu {
    /// The size behind a number of verbs or of the wire.
    pub fn of_number(number: u32) -> Option<Mtu> {
        ALL_MTUS.into_iter().find(|mtu| mtu.number() == number)
    }

    /// The number used by verbs and on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        128 << self.number()
    }
}

const ALL_MTUS: [Mtu; 5] = [Mtu::Bytes256, Mtu::Bytes512, Mtu::Bytes1024, Mtu::Bytes2048, Mtu::Bytes4096];

/// What a device allows one queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Work requests in a send or receive queue.
    pub queue_depth_max: u32,
    /// Segments in a work request.
    pub segments_max: u32,
    /// Segments in a read, which some devices allow fewer of.
    pub read_segments_max: u32,
    /// Entries of a completion queue.
    pub completions_max: u32,
    /// Reads that a queue pair may have outstanding.
    pub reads_as_initiator_max: u8,
    /// Reads that it may serve at a time.
    pub reads_as_target_max: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_its_number_and_its_bytes() {
        let bytes: Vec<u32> = (0..7).filter_map(Mtu::of_number).map(Mtu::bytes).collect();
        assert_eq!(bytes, [256, 512, 1024, 2048, 4096]);
        assert_eq!(Mtu::of_number(3).map(Mtu::number), Some(3));
    }

    #[test]
    fn a_mapped_address_is_shown_as_ipv4() {
        let mut address = [0; 16];
        address[10..].copy_from_slice(&[0xff, 0xff, 10, 9, 9, 1]);
        let gid = Gid { index: 1, kind: GidKind::RoceV2, address };
        assert_eq!(gid.to_string(), "1 RoCE v2 10.9.9.1");
        assert!(gid.is_ipv4() && !gid.is_link_local());
        address = [0; 16];
        address[..2].copy_from_slice(&[0xfe, 0x80]);
        address[15] = 1;
        let gid = Gid { index: 0, kind: GidKind::RoceV1, address };
        assert_eq!(gid.to_string(), "0 RoCE v1 fe80::1");
        assert!(!gid.is_ipv4() && gid.is_link_local());
    }
}
