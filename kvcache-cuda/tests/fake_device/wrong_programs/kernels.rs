//! Launches with tables that a kernel would follow into the void.

use kvcache_core::store::PageLayout;
use kvcache_cuda::driver::{Arguments, Driver, Stream};
use kvcache_cuda::fake::FakeDevice;
use kvcache_cuda::kernels::{
    BlockStrides, Kernel, LayerPages, PageStrides, PagedCopy, PieceCopy, PieceEntry, TokenCopy, TokenTables,
    table_bytes,
};

use super::{end, expect};
use crate::launches::{SHAPE, table};
use crate::program::{BYTES, Calls, Tensor, fill};

/// A launch that copies one piece of the device's memory to `dst`, with a table at `table`.
fn launch(device: &FakeDevice, table: u64, entries: &[PieceEntry], stream: Stream) -> bool {
    let arguments = Arguments::Pieces(PieceCopy::new(table, entries, 16).unwrap());
    // SAFETY: tests name memory that lives to their end, or do what the fake is to find out.
    unsafe { device.launch(Kernel::CopyPieces, &arguments, SHAPE, stream) }.is_ok()
}

fn loaded(device: &FakeDevice) -> (Stream, u64) {
    device.load_kernels().unwrap();
    (device.stream(), device.allocate_device(BYTES).unwrap())
}

fn entry(src: u64, dst: u64) -> PieceEntry {
    PieceEntry { src, dst, bytes: 32 }
}

#[test]
fn kernels_take_the_devices_address_of_pinned_memory() {
    expect("is the CPU's address of pinned memory", |device, wrong| {
        let (stream, from) = loaded(device);
        let to = device.allocate_host(BYTES).unwrap();
        let entries = [entry(from, if wrong { to.host as u64 } else { to.device })];
        assert!(launch(device, table(device, &entries), &entries, stream));
    });
}

#[test]
fn kernels_reach_no_other_memory_of_the_process() {
    let pageable = Tensor::new(BYTES);
    expect("is neither the device's nor mapped", |device, wrong| {
        let (stream, from) = loaded(device);
        let to = if wrong { pageable.at() as u64 } else { device.allocate_host(BYTES).unwrap().device };
        let entries = [entry(from, to)];
        assert!(launch(device, table(device, &entries), &entries, stream));
    });
    expect("is neither the device's nor mapped", |device, wrong| {
        let (stream, from) = loaded(device);
        let entries = [entry(from, device.allocate_host(BYTES).unwrap().device)];
        fill(pageable.at(), table_bytes(&entries));
        let at = if wrong { pageable.at() as u64 } else { table(device, &entries) };
        assert_eq!(launch(device, at, &entries, stream), !wrong);
    });
    expect("is not mapped", |device, wrong| {
        let (stream, from) = loaded(device);
        let to = device.allocate_host(BYTES).unwrap();
        if wrong {
            device.free_host(to.host);
        }
        // SAFETY: the tensor outlives the device.
        let mapped = unsafe { device.register_host(pageable.at(), BYTES) }.unwrap();
        if wrong {
            device.unregister_host(pageable.at());
        }
        let entries = [entry(from, mapped)];
        assert!(launch(device, table(device, &entries), &entries, stream));
    });
}

#[test]
fn tables_are_aligned() {
    expect("the table of pieces at", |device, wrong| {
        let (stream, from) = loaded(device);
        let entries = [entry(from, device.allocate_host(BYTES).unwrap().device)];
        let memory = device.allocate_host(BYTES).unwrap();
        let offset = if wrong { 4 } else { 8 };
        fill(memory.host + offset, table_bytes(&entries));
        assert_eq!(launch(device, memory.device + offset as u64, &entries, stream), !wrong);
    });
}

#[test]
fn tables_stay_unchanged_and_there() {
    for (text, frees) in [("the bytes that it reads", false), ("free_host of", true)] {
        expect(text, |device, wrong| {
            let (stream, from) = loaded(device);
            let entries = [entry(from, device.allocate_host(BYTES).unwrap().device)];
            let memory = device.allocate_host(BYTES).unwrap();
            fill(memory.host, table_bytes(&entries));
            assert!(launch(device, memory.device, &entries, stream));
            if !wrong {
                end(device, stream);
            }
            if frees {
                device.free_host(memory.host);
            } else {
                fill(memory.host + 16, &16u64.to_le_bytes());
            }
        });
    }
}

/// By a copy of the next table into the same memory, on another stream.
#[test]
fn tables_on_the_device_are_not_overwritten_under_a_launch() {
    expect("race: ", |device, wrong| {
        let (stream, from) = loaded(device);
        let entries = [entry(from, device.allocate_host(BYTES).unwrap().device)];
        let staging = device.allocate_host(BYTES).unwrap().host;
        fill(staging, table_bytes(&entries));
        let on_device = device.allocate_device(BYTES).unwrap();
        device.copies(staging, on_device as usize, stream).unwrap();
        assert!(launch(device, on_device, &entries, stream));
        device.copies(staging, on_device as usize, if wrong { device.stream() } else { stream }).unwrap();
    });
}

#[test]
fn no_two_items_of_a_launch_write_to_one_place() {
    expect("two destinations overlap", |device, wrong| {
        let (stream, from) = loaded(device);
        let to = device.allocate_host(BYTES).unwrap().device;
        let entries = [entry(from, to), entry(from, to + if wrong { 31 } else { 32 })];
        assert!(launch(device, table(device, &entries), &entries, stream));
    });
    expect("two destinations overlap", |device, wrong| {
        let (stream, bases) = loaded(device);
        let slot_mapping = [1i64, if wrong { 1 } else { 0 }];
        let blocks = [device.allocate_host(BYTES).unwrap().device];
        let copy = TokenCopy {
            bases: table(device, &[bases]),
            slot_mapping: table(device, &slot_mapping),
            blocks: table(device, &blocks),
            page_strides: PageStrides { page: 32, kv: 0, token: 16, head: 16 },
            block_strides: BlockStrides::lcnd(1, 2, 1, 16),
            head_bytes: 16,
            first_layer: 0,
            layer_count: 1,
            kv_count: 1,
            heads: 1,
            page_tokens: 2,
            page_count: 1,
            block_tokens: 2,
            block_count: 1,
        };
        let tables = TokenTables { bases: &[bases], slot_mapping: &slot_mapping, blocks: &blocks };
        let arguments = Arguments::Tokens(copy.checked(&tables).unwrap());
        // SAFETY: all of it lives as long as the device.
        unsafe { device.launch(Kernel::ScatterTokens, &arguments, SHAPE, stream) }.unwrap();
    });
}

/// The kernel would copy the beginning of the piece only.
#[test]
fn arguments_cover_what_the_tables_hold() {
    expect("a piece of 33 bytes, but the arguments cover 32", |device, wrong| {
        let (stream, from) = loaded(device);
        let to = device.allocate_host(BYTES).unwrap().device;
        let held = [PieceEntry { bytes: if wrong { 33 } else { 32 }, ..entry(from, to) }];
        assert!(launch(device, table(device, &held), &[entry(from, to)], stream));
    });
}

#[test]
fn page_arguments_cover_what_the_tables_hold() {
    expect("a page of 4 chunks, but the arguments cover 2", |device, wrong| {
        let (stream, base) = loaded(device);
        let pages = PageLayout {
            base: base as usize,
            block_stride: 64,
            block_count: 1,
            segments: 1,
            segment_stride: 64,
            segment_bytes: 64,
        };
        let said = [LayerPages::new(&pages, 0, 32).unwrap()];
        let held = [LayerPages::new(&pages, 0, if wrong { 16 } else { 32 }).unwrap()];
        let slots = [device.allocate_host(BYTES).unwrap().device];
        let tables = [table(device, &held), table(device, &slots), table(device, &[0u32])];
        let arguments = Arguments::Pages(PagedCopy::new(tables, &said, 1, 1).unwrap());
        // SAFETY: all of it lives as long as the device.
        unsafe { device.launch(Kernel::GatherPages, &arguments, SHAPE, stream) }.unwrap();
    });
}

#[test]
fn launches_do_not_overwrite_their_own_tables() {
    expect("it would overwrite its own tables", |device, wrong| {
        let (stream, from) = loaded(device);
        let memory = device.allocate_host(BYTES).unwrap();
        let entries = [entry(from, memory.device + if wrong { 16 } else { 24 })];
        fill(memory.host, table_bytes(&entries));
        assert!(launch(device, memory.device, &entries, stream));
    });
}

#[test]
fn kernels_are_loaded_and_get_arguments_of_their_form() {
    expect("the kernels were not loaded", |device, wrong| {
        if !wrong {
            device.load_kernels().unwrap();
        }
        assert_eq!(launch(device, 0, &[], device.stream()), !wrong);
    });
    expect("GatherPages does not take Pieces", |device, wrong| {
        let (stream, _) = loaded(device);
        let arguments = Arguments::Pieces(PieceCopy::new(0, &[], 16).unwrap());
        let kernel = if wrong { Kernel::GatherPages } else { Kernel::CopyPieces };
        // SAFETY: there is nothing to copy.
        assert_eq!(unsafe { device.launch(kernel, &arguments, SHAPE, stream) }.is_err(), wrong);
    });
}
