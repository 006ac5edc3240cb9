//! The devices that the process may see.

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys::{CUdevice, CUdevice_attribute};

use super::library::Library;
use super::unavailable::{Unavailable, visible_devices};
use crate::driver::{DeviceInfo, DriverError};

/// The devices that this process may see. Makes no context, so that it takes no memory of theirs.
///
/// # Errors
/// Why there is no CUDA here; a driver without a device is an error as well.
pub fn devices() -> Result<Vec<DeviceInfo>, Unavailable> {
    let library = Library::get()?;
    (0..count(library)?)
        .map(|ordinal| Ok(describe(library, ordinal, find(library, ordinal)?)?))
        .collect::<Result<Vec<_>, _>>()
}

/// How many there are: at least one.
fn count(library: &Library) -> Result<u32, Unavailable> {
    let mut count = 0;
    // SAFETY: an integer to write to.
    unsafe { library.device_count(&mut count) }?;
    u32::try_from(count)
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| Unavailable::NoDevice { visible: visible_devices() })
}

/// The driver's handle of a device.
pub(super) fn find(library: &Library, ordinal: u32) -> Result<CUdevice, Unavailable> {
    let count = count(library)?;
    let wanted = c_int::try_from(ordinal)
        .ok()
        .filter(|_| ordinal < count)
        .ok_or_else(|| Unavailable::NoSuchDevice { ordinal, count, visible: visible_devices() })?;
    let mut device = 0;
    // SAFETY: a handle to write to.
    unsafe { library.device_get(&mut device, wanted) }?;
    Ok(device)
}

/// The number of a device, by its handle; `None` if it is none of those that the process may see.
pub(super) fn ordinal(library: &Library, device: CUdevice) -> Option<u32> {
    (0..count(library).ok()?).find(|ordinal| find(library, *ordinal).ok() == Some(device))
}

pub(super) fn describe(library: &Library, ordinal: u32, device: CUdevice) -> Result<DeviceInfo, DriverError> {
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: an integer to write to, and a device of `find`.
        unsafe { library.device_attribute(&mut value, attribute, device) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut memory_bytes = 0;
    // SAFETY: an integer to write to, and a device of `find`.
    unsafe { library.device_memory(&mut memory_bytes, device) }?;
    // SAFETY: the driver writes as many bytes as it is told, at most.
    let name = text(|buffer, bytes| unsafe { library.device_name(buffer, bytes, device) })?;
    // SAFETY: as above.
    let pci_address = text(|buffer, bytes| unsafe { library.device_pci_address(buffer, bytes, device) })?;
    Ok(DeviceInfo {
        ordinal,
        name,
        // Linux writes the digits small.
        pci_address: pci_address.to_ascii_lowercase(),
        compute_capability: (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory_bytes as u64,
        driver_version: library.version,
        host_addresses_are_shared: attribute(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM,
        )? != 0,
    })
}

/// What the driver writes into a buffer of as many bytes.
fn text(write: impl FnOnce(*mut c_char, c_int) -> Result<(), DriverError>) -> Result<String, DriverError> {
    let mut buffer = [0u8; 256];
    write(buffer.as_mut_ptr().cast(), buffer.len() as c_int)?;
    Ok(CStr::from_bytes_until_nul(&buffer)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default())
}
