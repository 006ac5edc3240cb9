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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernel;

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
        assert_eq!(parts, [(1, 80), (2, 80), (2, 90), (2, 100)]);
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
