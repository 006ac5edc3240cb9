//! The list of devices, an opened device, and one of its ports with a protection domain.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::queue_pair::HardwareQueuePair;
use super::region::HardwareRegion;
use super::{check, errno_error};
use crate::verbs::error::{Error, Unavailable};
use crate::verbs::memory::{Access, Memory};
use crate::verbs::port::{DeviceInfo, Gid, GidKind, Limits, LinkLayer, Mtu, PortInfo, PortState};
use crate::verbs::provider::{PortDescription, RawPort, RawQueuePair, RawRegion};
use crate::verbs::queue_pair::QueuePairConfig;
use crate::verbs::selection::PortSelection;
use crate::verbs::sys::{Library, abi};

/// The devices that the library knows, until it is dropped.
pub(super) struct DeviceList {
    library: &'static Library,
    devices: NonNull<*mut abi::Device>,
    count: usize,
}

impl DeviceList {
    pub(super) fn new(library: &'static Library) -> Result<Self, Unavailable> {
        let mut count = 0;
        // SAFETY: the count is written; the list is freed on drop.
        let devices = unsafe { (library.get_device_list)(&mut count) };
        let Some(devices) = NonNull::new(devices) else {
            let error = io::Error::last_os_error();
            // What the library says when the kernel has no RDMA at all.
            return Err(match error.raw_os_error() {
                Some(libc::ENOSYS) => Unavailable::NoDevices,
                _ => Unavailable::NoList { reason: error.to_string() },
            });
        };
        Ok(Self { library, devices, count: usize::try_from(count).unwrap_or(0) })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.entries().map(|(_, name)| name)
    }

    fn entries(&self) -> impl Iterator<Item = (*mut abi::Device, String)> {
        (0..self.count).map(|index| {
            // SAFETY: the list has `count` devices, and the name of each lives as long as the list.
            unsafe {
                let device = *self.devices.as_ptr().add(index);
                let name = CStr::from_ptr((self.library.get_device_name)(device));
                (device, name.to_string_lossy().into_owned())
            }
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: from `get_device_list`, freed once. Devices that were opened stay open.
        unsafe { (self.library.free_device_list)(self.devices.as_ptr()) }
    }
}

/// An opened device. Everything that is made from it holds it.
pub(super) struct Context {
    pub(super) library: &'static Library,
    pub(super) raw: NonNull<abi::Context>,
    pub(super) name: String,
}

// SAFETY: verbs may be called from any thread, and at the same time.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(library: &'static Library, list: &DeviceList, name: &str) -> Result<Self, Error> {
        let (device, _) = list.entries().find(|(_, found)| found == name).ok_or_else(|| {
            super::verb_error("ibv_open_device", name, io::Error::from_raw_os_error(libc::ENODEV))
        })?;
        // SAFETY: a device of the list, which is still there.
        let raw = unsafe { (library.open_device)(device) };
        let raw = NonNull::new(raw).ok_or_else(|| errno_error("ibv_open_device", name))?;
        Ok(Self { library, raw, name: name.to_owned() })
    }

    pub(super) fn info(&self) -> Result<DeviceInfo, Error> {
        let attributes = self.attributes()?;
        let ports = (1..=attributes.port_count).map(|number| self.port(number)).collect::<Result<_, _>>()?;
        Ok(DeviceInfo { name: self.name.clone(), ports, limits: limits(&attributes) })
    }

    fn attributes(&self) -> Result<abi::DeviceAttributes, Error> {
        let mut attributes = std::mem::MaybeUninit::<abi::DeviceAttributes>::zeroed();
        // SAFETY: an open device; the structure is as large as the library's.
        let status = unsafe { (self.library.query_device)(self.raw.as_ptr(), attributes.as_mut_ptr()) };
        check("ibv_query_device", || self.name.clone(), status)?;
        // SAFETY: integers: zeroed, then written.
        Ok(unsafe { attributes.assume_init() })
    }

    fn port(&self, number: u8) -> Result<PortInfo, Error> {
        let mut attributes = abi::PortAttributes::default();
        // SAFETY: an open device. The exported function writes an older, shorter form of the structure.
        let status = unsafe { (self.library.query_port)(self.raw.as_ptr(), number, &mut attributes) };
        check("ibv_query_port", || format!("{}:{number}", self.name), status)?;
        let gids = (0..u32::try_from(attributes.gid_table_len).unwrap_or(0).min(GIDS_MAX))
            .filter_map(|index| self.gid(number, index))
            .collect();
        Ok(PortInfo {
            number,
            state: match attributes.state {
                1 => PortState::Down,
                2 => PortState::Initializing,
                3 => PortState::Armed,
                4 => PortState::Active,
                other => PortState::Other(other),
            },
            // Unspecified means InfiniBand, for drivers older than RoCE.
            link_layer: if attributes.link_layer == 2 { LinkLayer::Ethernet } else { LinkLayer::InfiniBand },
            active_mtu: Mtu::of_number(attributes.active_mtu as u32).unwrap_or(Mtu::Bytes1024),
            lid: attributes.lid,
            message_bytes_max: attributes.max_message_bytes,
            gids,
        })
    }

    /// The entry of the table, if there is one.
    fn gid(&self, port: u8, index: u32) -> Option<Gid> {
        let mut entry = abi::GidEntry::default();
        let status = match self.library.query_gid_ex {
            // SAFETY: an open device; the size tells which form of the structure is meant.
            Some(query) => unsafe {
                query(self.raw.as_ptr(), u32::from(port), index, &mut entry, 0, size_of::<abi::GidEntry>())
            },
            None => {
                entry.kind = self.gid_kind_of_sysfs(port, index)?;
                // SAFETY: an open device; 16 bytes are written.
                unsafe { (self.library.query_gid)(self.raw.as_ptr(), port, index as i32, &mut entry.gid) }
            }
        };
        if status != 0 || entry.gid == [0; 16] {
            return None;
        }
        let kind = match entry.kind {
            0 => GidKind::InfiniBand,
            1 => GidKind::RoceV1,
            2 => GidKind::RoceV2,
            other => GidKind::Other(other),
        };
        Some(Gid { index, kind, address: entry.gid })
    }

    /// Libraries before rdma-core 32 do not tell the kind; the kernel does.
    fn gid_kind_of_sysfs(&self, port: u8, index: u32) -> Option<u32> {
        let path = format!("/sys/class/infiniband/{}/ports/{port}/gid_attrs/types/{index}", self.name);
        let text = std::fs::read_to_string(path).ok()?;
        Some(if text.contains("v2") { 2 } else { u32::from(text.contains("RoCE")) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened once; whatever was made from it held it, and is gone.
        let _ = unsafe { (self.library.close_device)(self.raw.as_ptr()) };
    }
}

/// Large devices have tables of 255 entries for each virtual function.
const GIDS_MAX: u32 = 256;

fn limits(attributes: &abi::DeviceAttributes) -> Limits {
    let count = |number: i32| u32::try_from(number).unwrap_or(0);
    let reads = |number: i32| u8::try_from(number.clamp(0, 255)).unwrap_or(0);
    Limits {
        queue_depth_max: count(attributes.max_queue_pair_requests),
        segments_max: count(attributes.max_segments),
        read_segments_max: count(attributes.max_read_segments),
        completions_max: count(attributes.max_completions),
        reads_as_initiator_max: reads(attributes.max_reads_as_initiator),
        reads_as_target_max: reads(attributes.max_reads_as_target),
    }
}

/// A port of an opened device, with a protection domain.
pub(super) struct OpenedPort {
    pub(super) context: Arc<Context>,
    domain: Arc<ProtectionDomain>,
    number: u8,
    gid_index: Option<u32>,
    description: PortDescription,
}

impl OpenedPort {
    pub(super) fn new(context: Arc<Context>, selection: &PortSelection) -> Result<Self, Error> {
        let attributes = context.attributes()?;
        let port = context.port(selection.port)?;
        // SAFETY: an open device.
        let domain = unsafe { (context.library.alloc_pd)(context.raw.as_ptr()) };
        let domain = NonNull::new(domain).ok_or_else(|| errno_error("ibv_alloc_pd", &context.name))?;
        let address = selection.gid.map_or_else(|| format!("lid {}", port.lid), |gid| gid.to_string());
        let description = PortDescription {
            name: format!("{}:{} ({address})", selection.device, selection.port),
            link_layer: port.link_layer,
            gid: selection.gid.map_or([0; 16], |gid| gid.address),
            lid: port.lid,
            active_mtu: port.active_mtu,
            message_bytes_max: port.message_bytes_max,
            limits: limits(&attributes),
        };
        let domain = Arc::new(ProtectionDomain { context: Arc::clone(&context), raw: domain });
        Ok(Self {
            context,
            domain,
            number: selection.port,
            gid_index: selection.gid.map(|gid| gid.index),
            description,
        })
    }
}

impl RawPort for OpenedPort {
    fn description(&self) -> PortDescription {
        self.description.clone()
    }

    unsafe fn register(&self, memory: &Memory, access: Access) -> Result<Box<dyn RawRegion>, Error> {
        // SAFETY: the caller's.
        let raw = unsafe {
            (self.context.library.reg_mr)(
                self.domain.raw.as_ptr(),
                memory.address() as *mut libc::c_void,
                memory.bytes(),
                access_flags(access),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            errno_error("ibv_reg_mr", format!("{} bytes on {}", memory.bytes(), self.context.name))
        })?;
        Ok(Box::new(HardwareRegion::new(Arc::clone(&self.domain), raw)))
    }

    unsafe fn register_dmabuf(
        &self,
        memory: &Memory,
        fd: BorrowedFd<'_>,
        offset: u64,
        access: Access,
    ) -> Result<Box<dyn RawRegion>, Error> {
        let register = self.context.library.reg_dmabuf_mr.ok_or(Error::MissingVerb {
            verb: "ibv_reg_dmabuf_mr",
            remedy: "it came with rdma-core 34; older ones reach GPU memory through the kernel module nvidia-peermem",
        })?;
        // Peers name the memory by its addresses on the device, as they do with host memory.
        let (bytes, address) = (memory.bytes(), memory.address() as u64);
        // SAFETY: the caller's; the kernel takes its own reference to the dma-buf.
        let raw = unsafe {
            register(self.domain.raw.as_ptr(), offset, bytes, address, fd.as_raw_fd(), access_flags(access))
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            errno_error("ibv_reg_dmabuf_mr", format!("{bytes} bytes of a device on {}", self.context.name))
        })?;
        Ok(Box::new(HardwareRegion::new(Arc::clone(&self.domain), raw)))
    }

    fn create_queue_pair(&self, config: &QueuePairConfig) -> Result<Box<dyn RawQueuePair>, Error> {
        let queue_pair = HardwareQueuePair::new(
            Arc::clone(&self.domain),
            self.number,
            self.gid_index,
            config,
            &self.description.limits,
        )?;
        Ok(Box::new(queue_pair))
    }
}

fn access_flags(access: Access) -> i32 {
    match access {
        Access::Local => abi::ACCESS_LOCAL_WRITE,
        Access::Remote => abi::ACCESS_LOCAL_WRITE | abi::ACCESS_REMOTE_READ | abi::ACCESS_REMOTE_WRITE,
    }
}

/// Regions and queue pairs of one domain work with each other.
pub(super) struct ProtectionDomain {
    pub(super) context: Arc<Context>,
    pub(super) raw: NonNull<abi::Domain>,
}

// SAFETY: verbs may be called from any thread, and at the same time.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: allocated once; regions and queue pairs held it, and are gone.
        let _ = unsafe { (self.context.library.dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// A null pointer where the library takes an optional one.
pub(super) fn none<T>() -> *mut T {
    ptr::null_mut()
}
