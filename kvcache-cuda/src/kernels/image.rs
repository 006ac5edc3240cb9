//! The compiled kernels, as part of this library.

/// `include_bytes!` alone promises no alignment; the driver reads the image's header as words.
#[repr(C, align(16))]
struct Aligned<Bytes: ?Sized>(Bytes);

static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../kernels/prebuilt/paged_copy.fatbin"));

/// What the image was made of: SHA-256 sums of the sources, the compiler's flags and pinned packages, and the image
/// itself, one file a line. `scripts/check_kernels.sh` compares them.
pub const MANIFEST: &str = include_str!("../../../kernels/prebuilt/SHA256SUMS");

/// The image with all kernels (a CUDA fat binary): code for compute capability 8.0, 9.0 and 10.0, and PTX of 8.0 for others.
/// Aligned to 16 bytes. Made with CUDA 13.0: it needs a driver of release 580 or newer.
pub fn image() -> &'static [u8] {
    &IMAGE.0
}

/// How a device gets the kernels out of the image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Support {
    /// As code that was compiled for it.
    Code,
    /// As PTX, which the driver compiles when the image is loaded: slower to load once (the driver keeps the result).
    Ptx,
    /// Not at all: the driver is older than CUDA 13.0 (release 580), whose compiler made the image.
    OldDriver,
    /// Not at all: the device is older than compute capability 8.0.
    OldDevice,
}

/// What a device of this compute capability gets, by a driver of this version (1000 × major + 10 × minor).
///
/// Code for X.Y runs on X.Z from Z = Y on, and PTX for X.Y on all that is newer (CUDA C++ Programming Guide, "Binary
/// Compatibility", "PTX Compatibility"). What the driver thinks is the answer of `Driver::load_kernels`.
pub fn support(compute_capability: (u32, u32), driver_version: u32) -> Support {
    if driver_version < DRIVER_VERSION_MIN {
        return Support::OldDriver;
    }
    let compiled_for =
        |(major, minor): (u32, u32)| major == compute_capability.0 && minor <= compute_capability.1;
    match compute_capability {
        _ if CODE.into_iter().any(compiled_for) => Support::Code,
        newer if newer >= PTX => Support::Ptx,
        _ => Support::OldDevice,
    }
}

/// CUDA 13.0.
const DRIVER_VERSION_MIN: u32 = 13_000;

/// What the image has code for.
const CODE: [(u32, u32); 3] = [(8, 0), (9, 0), (10, 0)];

/// What its PTX is for.
const PTX: (u32, u32) = (8, 0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernel;

    #[test]
    fn devices_get_code_ptx_or_a_reason() {
        let got = |capability| support(capability, 13_000);
        assert_eq!([(8, 0), (8, 9), (9, 0), (10, 3)].map(got), [Support::Code; 4]);
        assert_eq!([(11, 0), (12, 0)].map(got), [Support::Ptx; 2]);
        assert_eq!([(7, 5), (0, 0)].map(got), [Support::OldDevice; 2]);
        assert_eq!(support((9, 0), 12_090), Support::OldDriver);
        assert_eq!(support((9, 0), 14_000), Support::Code);
    }

    #[test]
    fn the_image_is_a_whole_and_aligned_fat_binary() {
        let image = image();
        assert_eq!(image.as_ptr() as usize % 16, 0);
        // The header: a magic number, version, bytes of the header, bytes of what follows.
        assert_eq!(image[..4], 0xBA55_ED50_u32.to_le_bytes());
        let header = usize::from(u16::from_le_bytes(image[6..8].try_into().unwrap()));
        let body = u64::from_le_bytes(image[8..16].try_into().unwrap());
        assert_eq!(header as u64 + body, image.len() as u64);
        // Each part of it: kind (1 is PTX, 2 is code), header and body bytes, and at 28 the architecture.
        let mut parts = Vec::new();
        let mut rest = &image[header..];
        while !rest.is_empty() {
            let kind = u16::from_le_bytes(rest[..2].try_into().unwrap());
            let header = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
            let body = u64::from_le_bytes(rest[8..16].try_into().unwrap()) as usize;
            parts.push((kind, u32::from_le_bytes(rest[28..32].try_into().unwrap())));
            rest = &rest[header + body..];
        }
        parts.sort_unstable();
        let number = |(major, minor): (u32, u32)| 10 * major + minor;
        let mut wanted = vec![(1, number(PTX))];
        wanted.extend(CODE.map(|capability| (2, number(capability))));
        assert_eq!(parts, wanted);
    }

    #[test]
    fn the_manifest_names_the_image_and_all_that_it_depends_on() {
        for file in
            ["kernels/paged_copy.cu", "kernels/paged_copy.h", "kernels/nvcc.flags", "paged_copy.fatbin"]
        {
            assert!(MANIFEST.lines().any(|line| line.ends_with(file)), "{file}");
        }
    }

    /// A driver looks kernels up by name, at run time.
    #[test]
    fn kernels_are_called_what_the_source_calls_them() {
        let source = include_str!("../../../kernels/paged_copy.cu");
        assert_eq!(source.matches("__global__").count(), Kernel::ALL.len());
        for kernel in Kernel::ALL {
            let declared =
                format!("extern \"C\" __global__ void __launch_bounds__(512, 2) {}(", kernel.symbol());
            assert!(source.contains(&declared), "{kernel:?}");
        }
    }
}
