//! Devices, ports, addresses, registered memory: what the library tells, against what the machine was given.

use std::sync::Arc;

use kvcache_rdma::verbs::{
    Access, Error, GidKind, LinkLayer, Memory, PortState, PortWish, Rdma, SelectionError,
};

use crate::checks::{Checks, expect, pinned_bytes};

pub(crate) fn check_all(checks: &mut Checks, rdma: &Rdma) {
    for device in rdma.devices() {
        for port in &device.ports {
            let gids: Vec<String> = port.gids.iter().map(ToString::to_string).collect();
            println!(
                "{}:{} {} {}, mtu {}, gids [{}], {:?}",
                device.name,
                port.number,
                port.state,
                port.link_layer,
                port.active_mtu.bytes(),
                gids.join(", "),
                device.limits
            );
        }
    }
    checks.run("an_active_port_has_an_address", || an_active_port_has_an_address(rdma));
    checks.run("wishes_that_cannot_be_met_are_refused", || wishes_are_checked(rdma));
    checks.run("memory_is_pinned_while_it_is_registered", || memory_is_pinned(rdma));
}

fn an_active_port_has_an_address(rdma: &Rdma) -> Result<(), String> {
    let mut ports = rdma.devices().iter().flat_map(|device| &device.ports);
    let port = ports.find(|port| port.state == PortState::Active).ok_or("no port is active")?;
    match port.link_layer {
        LinkLayer::InfiniBand => expect("has a LID", port.lid > 0, true),
        LinkLayer::Ethernet => {
            let found = port.gids.iter().any(|gid| gid.kind == GidKind::RoceV2 && gid.is_ipv4());
            expect("has a RoCE v2 GID of IPv4", found, true)
        }
    }
}

fn wishes_are_checked(rdma: &Rdma) -> Result<(), String> {
    let wish = PortWish { device: Some("no-such-device".to_owned()), ..Default::default() };
    let refused = rdma.open(&wish);
    let named = matches!(refused, Err(Error::Selection(SelectionError::NoSuchDevice { .. })));
    expect("another device", named, true)?;
    let wish = PortWish { gid_index: Some(200), ..Default::default() };
    let refused = rdma.open(&wish);
    expect("another GID", matches!(refused, Err(Error::Selection(SelectionError::NoSuchGid { .. }))), true)
}

fn memory_is_pinned(rdma: &Rdma) -> Result<(), String> {
    let port = rdma.open(&PortWish::default()).map_err(|error| error.to_string())?;
    let before = pinned_bytes("self")?;
    let region =
        port.register(Memory::allocate(1 << 20), Access::Remote).map_err(|error| error.to_string())?;
    expect("pinned by a region of 1 MiB", pinned_bytes("self")? - before, 1 << 20)?;
    let region = Arc::new(region);
    let slice = region.slice_at(region.address(), 4096).map_err(|error| error.to_string())?;
    drop(region);
    expect("pinned while a slice is held", pinned_bytes("self")? - before, 1 << 20)?;
    drop(slice);
    expect("pinned after the last slice", pinned_bytes("self")?, before)
}
