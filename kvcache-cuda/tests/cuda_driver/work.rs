//! Copies, batches and launches.

use std::sync::Arc;

use kvcache_core::copy_engine::Piece;
use kvcache_core::store::PageLayout;
use kvcache_cuda::driver::{Arguments, Descriptors, Driver, LaunchShape, Priority, SourceOrder, Stream};
use kvcache_cuda::kernels::{BlockStrides, Kernel, LayerPages, PageStrides, PagedCopy, PieceCopy, TokenCopy};

use super::library::{Found, WHOLE, calls, fail, in_child, use_device};
use super::open;

#[test]
fn a_copy_goes_into_its_stream() {
    const TEST: &str = "work::a_copy_goes_into_its_stream";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        use_device(0);
        let stream = driver.create_stream(Priority::High).unwrap();
        calls();
        let (source, mut destination) = ([7u8; 100], [0u8; 100]);
        let (src, dst) = (source.as_ptr() as usize, destination.as_mut_ptr() as usize);
        for bytes in [60, 0] {
            // SAFETY: both arrays live until the end, and the library copies at once.
            unsafe { driver.copy(Piece { src, dst, bytes }, stream) }.unwrap();
        }
        assert_eq!(destination[..60], [7; 60]);
        assert_eq!(destination[60..], [0; 40]);
        assert_eq!(calls(), ["copy of 60 in stream 0"], "nothing is asked to copy nothing");
        fail(c"cuMemcpyAsync", 700);
        // SAFETY: as above.
        let error = unsafe { driver.copy(Piece { src, dst, bytes: 60 }, stream) }.unwrap_err();
        assert_eq!((error.operation, error.code), ("cuMemcpyAsync", 700));
    });
}

/// Four copies of 16 bytes in reverse order, in each of the two signatures of the driver's function.
fn batches(version: &str) {
    let driver = open();
    use_device(0);
    let stream = driver.create_stream(Priority::Low).unwrap();
    calls();
    let source: Vec<u8> = (0..64).collect();
    let mut destination = vec![0u8; 64];
    let (src, dst) = (source.as_ptr() as u64, destination.as_mut_ptr() as u64);
    let descriptors = Descriptors {
        destinations: (0..4).map(|index| dst + 16 * (3 - index)).collect(),
        sources: (0..4).map(|index| src + 16 * index).collect(),
        sizes: vec![16; 4],
    };
    let submit = |descriptors: &Descriptors, order, stream| {
        // SAFETY: the arrays live until the end, and the library copies at once.
        unsafe { driver.copy_batch(&Arc::new(descriptors.clone()), order, stream) }
    };
    assert!(driver.has_batch_copy());
    submit(&descriptors, SourceOrder::Stream, stream).unwrap();
    let reversed: Vec<u8> = (48..64).chain(32..48).chain(16..32).chain(0..16).collect();
    assert_eq!(destination, reversed);
    submit(&descriptors, SourceOrder::Any, stream).unwrap();
    assert_eq!(
        calls(),
        [
            format!("batch of 4 by CUDA {version}, order 1, in stream 0"),
            format!("batch of 4 by CUDA {version}, order 3, in stream 0")
        ]
    );
    // What must not reach the driver.
    for stream in [0, 1] {
        let error = submit(&descriptors, SourceOrder::Any, Stream(stream)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cuMemcpyBatchAsync failed: CUDA_ERROR_INVALID_VALUE: a batch cannot go into the default stream (1)"
        );
    }
    let shorter = Descriptors { sources: descriptors.sources[..3].to_vec(), ..descriptors.clone() };
    let longer = Descriptors { destinations: vec![dst; 5], ..descriptors.clone() };
    for wrong in [shorter, longer, Descriptors::default()] {
        let error = submit(&wrong, SourceOrder::Stream, stream).unwrap_err();
        assert!(error.name.contains("the arrays are empty or of different lengths"), "{error}");
    }
    assert!(calls().is_empty());
    // What the driver refuses; only the older function says which copy it was.
    let with_nothing = Descriptors { sizes: vec![16, 16, 0, 16], ..descriptors };
    let error = submit(&with_nothing, SourceOrder::Stream, stream).unwrap_err();
    let which = if version == "12.8" { ": copy 2 of 4" } else { "" };
    assert_eq!(error.to_string(), format!("cuMemcpyBatchAsync failed: CUDA_ERROR_INVALID_VALUE{which} (1)"));
}

#[test]
fn batches_use_the_signature_of_the_drivers_version() {
    const TEST: &str = "work::batches_use_the_signature_of_the_drivers_version";
    for version in ["12080", "12090"] {
        in_child(TEST, version, WHOLE, &[("FAKE_CUDA_VERSION", version)], || batches("12.8"));
    }
    for version in ["13000", "14000"] {
        in_child(TEST, version, WHOLE, &[("FAKE_CUDA_VERSION", version)], || batches("13.0"));
    }
}

#[test]
fn older_drivers_have_no_batches() {
    const TEST: &str = "work::older_drivers_have_no_batches";
    in_child(TEST, "", WHOLE, &[("FAKE_CUDA_VERSION", "12060")], || {
        let driver = open();
        assert!(!driver.has_batch_copy());
        let stream = driver.create_stream(Priority::Low).unwrap();
        let descriptors = Descriptors { destinations: vec![64], sources: vec![64], sizes: vec![1] };
        // SAFETY: refused before anything is read.
        let result = unsafe { driver.copy_batch(&Arc::new(descriptors), SourceOrder::Stream, stream) };
        assert_eq!(
            result.unwrap_err().to_string(),
            "cuMemcpyBatchAsync failed: CUDA_ERROR_NOT_SUPPORTED: the driver is older than CUDA 12.8 (801)"
        );
    });
}

/// As under WSL2, where a batch of registered memory faults when it runs.
#[test]
fn a_device_that_does_not_take_the_hosts_addresses_gets_no_batches() {
    const TEST: &str = "work::a_device_that_does_not_take_the_hosts_addresses_gets_no_batches";
    in_child(TEST, "", WHOLE, &[("FAKE_CUDA_HOST_ADDRESSES", "0")], || {
        let driver = open();
        use_device(0);
        assert!(!driver.device().host_addresses_are_shared);
        assert!(!driver.has_batch_copy());
        let stream = driver.create_stream(Priority::Low).unwrap();
        calls();
        let (source, mut destination) = ([7u8; 16], [0u8; 16]);
        let (src, dst) = (source.as_ptr() as usize, destination.as_mut_ptr() as usize);
        let descriptors =
            Descriptors { destinations: vec![dst as u64], sources: vec![src as u64], sizes: vec![16] };
        // SAFETY: refused before anything is read.
        let result = unsafe { driver.copy_batch(&Arc::new(descriptors), SourceOrder::Any, stream) };
        assert_eq!(
            result.unwrap_err().to_string(),
            "cuMemcpyBatchAsync failed: CUDA_ERROR_NOT_SUPPORTED: the device does not take the host's addresses of registered \
             memory (801)"
        );
        assert!(calls().is_empty());
        // SAFETY: the arrays live until the end, and the library copies at once.
        unsafe { driver.copy(Piece { src, dst, bytes: 16 }, stream) }.unwrap();
        assert_eq!(destination, source);
    });
}

fn pieces(table: u64) -> Arguments {
    Arguments::Pieces(PieceCopy::new(table, &[], 16).unwrap())
}

fn pages(table: u64) -> Arguments {
    let layout = PageLayout {
        base: 4096,
        block_stride: 32,
        segment_stride: 16,
        segments: 2,
        segment_bytes: 16,
        block_count: 8,
    };
    let layer = LayerPages::new(&layout, 0, 16).unwrap();
    Arguments::Pages(PagedCopy::new([table, 64, 64], &[layer], 1, 1).unwrap())
}

fn tokens(table: u64) -> Arguments {
    Arguments::Tokens(TokenCopy {
        bases: table,
        slot_mapping: 0,
        blocks: 0,
        page_strides: PageStrides { page: 16, kv: 16, token: 16, head: 16 },
        block_strides: BlockStrides { layer: 16, kv: 16, token: 16, head: 16 },
        head_bytes: 16,
        first_layer: 0,
        layer_count: 1,
        kv_count: 1,
        heads: 1,
        page_tokens: 1,
        page_count: 1,
        block_tokens: 1,
        block_count: 1,
    })
}

#[test]
fn kernels_are_loaded_once_and_launched_with_their_arguments() {
    const TEST: &str = "work::kernels_are_loaded_once_and_launched_with_their_arguments";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        use_device(0);
        let stream = driver.create_stream(Priority::High).unwrap();
        calls();
        let launch = |kernel, arguments: Arguments, blocks, threads| {
            // SAFETY: the library runs nothing.
            unsafe { driver.launch(kernel, &arguments, LaunchShape { blocks, threads }, stream) }
        };
        let error = launch(Kernel::CopyPieces, pieces(0), 1, 32).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cuLaunchKernel failed: CUDA_ERROR_NOT_FOUND: the kernels have not been loaded (500)"
        );
        driver.load_kernels().unwrap();
        driver.load_kernels().unwrap();
        let loaded = Kernel::ALL.map(|kernel| format!("{} loaded", kernel.symbol()));
        assert_eq!(calls(), [&["image loaded".to_owned()][..], &loaded].concat());
        launch(Kernel::CopyPieces, pieces(0x1234_5678_9abc), 8, 512).unwrap();
        launch(Kernel::GatherPages, pages(0x40), 1, 32).unwrap();
        launch(Kernel::ScatterPages, pages(0x80), 16, 256).unwrap();
        launch(Kernel::GatherTokens, tokens(0xc0), 2, 64).unwrap();
        launch(Kernel::ScatterTokens, tokens(0x100), 3, 96).unwrap();
        assert_eq!(
            calls(),
            [
                "kvcache_copy_pieces of 123456789abc: grid 8 1 1, block 512 1 1, shared 0, stream 0",
                "kvcache_gather_pages of 40: grid 1 1 1, block 32 1 1, shared 0, stream 0",
                "kvcache_scatter_pages of 80: grid 16 1 1, block 256 1 1, shared 0, stream 0",
                "kvcache_gather_tokens of c0: grid 2 1 1, block 64 1 1, shared 0, stream 0",
                "kvcache_scatter_tokens of 100: grid 3 1 1, block 96 1 1, shared 0, stream 0"
            ]
        );
        for (blocks, threads) in [(0, 32), (1, 0), (1, 31), (1, 48), (1, 544), (1 << 31, 32)] {
            let error = launch(Kernel::CopyPieces, pieces(0), blocks, threads).unwrap_err();
            assert_eq!(error.code, 1, "{blocks} {threads}: {error}");
        }
        let error = launch(Kernel::GatherTokens, pieces(0), 1, 32).unwrap_err();
        assert!(error.name.contains("GatherTokens does not take these arguments"), "{error}");
        assert!(calls().is_empty());
        fail(c"cuLaunchKernel", 701);
        assert_eq!(launch(Kernel::CopyPieces, pieces(0), 1, 32).unwrap_err().code, 701);
        drop(driver);
        assert_eq!(calls(), ["image unloaded", "release 0: 1"]);
    });
}

/// Drivers before CUDA 12.4 load a function when it is launched first.
#[test]
fn kernels_are_loaded_without_a_function_that_loads_them() {
    const TEST: &str = "work::kernels_are_loaded_without_a_function_that_loads_them";
    in_child(TEST, "", Found::Compiled(&["-DWITHOUT_FUNCTION_LOAD"]), &[], || {
        let driver = open();
        use_device(0);
        calls();
        driver.load_kernels().unwrap();
        assert_eq!(calls(), ["image loaded"]);
    });
}

#[test]
fn an_image_that_the_driver_refuses_is_an_error_each_time() {
    const TEST: &str = "work::an_image_that_the_driver_refuses_is_an_error_each_time";
    in_child(TEST, "", WHOLE, &[], || {
        let driver = open();
        use_device(0);
        calls();
        fail(c"cuModuleLoadData", 209);
        assert_eq!(
            driver.load_kernels().unwrap_err().to_string(),
            "cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU (209)"
        );
        assert!(calls().is_empty());
        fail(c"cuModuleGetFunction", 500);
        assert_eq!(driver.load_kernels().unwrap_err().operation, "cuModuleGetFunction");
        assert_eq!(calls(), ["image loaded", "image unloaded"]);
        driver.load_kernels().unwrap();
    });
}
