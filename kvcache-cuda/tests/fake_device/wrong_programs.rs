//! Small programs that do what they must not, each beside a twin that differs in that alone.

use std::sync::Arc;

use kvcache_core::copy_engine::Piece;
use kvcache_core::store::PageLayout;
use kvcache_cuda::driver::{Arguments, Descriptors, Driver, Event, SourceOrder, Stream};
use kvcache_cuda::fake::FakeDevice;
use kvcache_cuda::kernels::{
    BlockStrides, Kernel, LayerPages, PageStrides, PagedCopy, PieceCopy, PieceEntry, TokenCopy, TokenTables,
    table_bytes,
};

use crate::launches::{SHAPE, table};
use crate::program::{BYTES, Calls, Tensor, bytes, fill, filling};

/// Runs both twins with several seeds: `text` is among the violations of the wrong one, the right one has none.
fn expect(text: &str, program: impl Fn(&FakeDevice, bool)) {
    for seed in 0..20 {
        let device = FakeDevice::new(seed);
        program(&device, true);
        let violations = device.settle();
        assert!(violations.iter().any(|violation| violation.contains(text)), "seed {seed}: {violations:#?}");
        let device = FakeDevice::new(seed);
        program(&device, false);
        assert_eq!(device.settle(), [""; 0], "seed {seed}: of the right twin of {text:?}");
    }
}

/// Ends the work of a stream, as the host knows.
fn end(device: &FakeDevice, stream: Stream) {
    device.synchronize_event(device.recorded(stream)).unwrap();
}

mod lifetimes {
    use super::*;

    #[test]
    fn arrays_are_kept_until_the_end_of_a_batch() {
        expect("its arrays were freed before its end", |device, wrong| {
            let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
            let kept =
                device.batch(&[(device.pinned(1), tensor as usize)], SourceOrder::Any, stream).unwrap();
            if !wrong {
                end(device, stream);
            }
            drop(kept);
        });
    }

    #[test]
    fn arrays_stay_as_they_were() {
        expect("its arrays changed before its end", |device, wrong| {
            let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
            let mut sizes = vec![BYTES];
            let size = sizes.as_mut_ptr();
            let arrays =
                Descriptors { destinations: vec![tensor], sources: vec![device.pinned(1) as u64], sizes };
            let kept = Arc::new(arrays);
            // SAFETY: the memory lives as long as the device, which reads no more than the arrays said at the call.
            unsafe { device.copy_batch(&kept, SourceOrder::Stream, stream) }.unwrap();
            if wrong {
                // SAFETY: the vector was not moved to other memory, and nobody else looks at it now.
                unsafe { size.write(BYTES / 2) };
            }
            end(device, stream);
        });
    }

    #[test]
    fn memory_is_kept_until_the_end_of_what_needs_it() {
        for kind in 0..4 {
            expect(
                ["free_device of", "free_host of", "unregister_host of", "removal of"][kind],
                |device, wrong| {
                    let stream = device.stream();
                    let (tensor, slot) = (Tensor::new(BYTES), Tensor::new(BYTES));
                    let (mut dst, mut src) =
                        (device.allocate_device(BYTES).unwrap() as usize, device.pinned(3));
                    if kind == 2 {
                        src = slot.at();
                        // SAFETY: the tensor outlives the registration.
                        unsafe { device.register_host(src, BYTES) }.unwrap();
                    }
                    if kind == 3 {
                        dst = tensor.at();
                        device.add_device_memory(dst, BYTES);
                    }
                    device.copies(src, dst, stream).unwrap();
                    if !wrong {
                        end(device, stream);
                    }
                    match kind {
                        0 => device.free_device(dst as u64),
                        1 => device.free_host(src),
                        2 => device.unregister_host(src),
                        _ => device.remove_device_memory(dst),
                    }
                    device.run_all();
                },
            );
        }
    }

    /// It may not even be mapped any more.
    #[test]
    fn memory_that_went_away_is_not_touched() {
        for begun in [false, true] {
            let device = FakeDevice::new(1);
            let slot = Tensor::new(BYTES);
            // SAFETY: the tensor outlives the registration.
            unsafe { device.register_host(slot.at(), BYTES) }.unwrap();
            let page = device.allocate_device(BYTES).unwrap() as usize;
            let before = bytes(page, BYTES);
            device.copies(slot.at(), page, device.stream()).unwrap();
            device.advance(usize::from(begun));
            device.unregister_host(slot.at());
            assert!(device.settle()[0].starts_with("unregister_host of"));
            assert_eq!(bytes(page, BYTES), before);
        }
    }

    /// That the work has ended is not enough: the host must know.
    #[test]
    fn memory_is_freed_by_those_who_know_of_the_end() {
        expect("race: free_host (host) and copy", |device, wrong| {
            let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
            let from = device.pinned(1);
            device.copies(from, tensor as usize, stream).unwrap();
            let event = device.recorded(stream);
            device.run_all();
            if !wrong {
                while !device.query_event(event).unwrap() {}
            }
            device.free_host(from);
        });
    }

    #[test]
    fn freed_memory_is_not_used() {
        expect("was freed", |device, wrong| {
            let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
            let from = device.pinned(1);
            let free = || device.free_host(from);
            if wrong {
                free();
            }
            assert_eq!(device.copies(from, tensor as usize, stream).is_err(), wrong);
            end(device, stream);
            if !wrong {
                free();
            }
        });
    }

    #[test]
    fn memory_is_freed_once_and_as_what_it_is() {
        type Free = fn(&FakeDevice, usize);
        let frees: [(&str, Free); 4] = [
            ("free_device: nothing", |device, at| device.free_device(at as u64)),
            ("free_host: nothing", FakeDevice::free_host),
            ("unregister_host: nothing", FakeDevice::unregister_host),
            ("remove_device_memory: nothing", FakeDevice::remove_device_memory),
        ];
        for (index, (text, free)) in frees.into_iter().enumerate() {
            let memory = Tensor::new(BYTES);
            expect(text, |device, wrong| {
                let at = match index {
                    0 => device.allocate_device(BYTES).unwrap() as usize,
                    1 => device.pinned(1),
                    2 => {
                        // SAFETY: the tensor outlives the device.
                        unsafe { device.register_host(memory.at(), BYTES) }.unwrap();
                        memory.at()
                    }
                    _ => {
                        device.add_device_memory(memory.at(), BYTES);
                        memory.at()
                    }
                };
                free(device, at);
                if wrong {
                    free(device, at);
                }
            });
        }
    }

    #[test]
    fn streams_and_events_are_used_while_they_are_there() {
        expect("a stream that was destroyed", |device, wrong| {
            let (stream, other) = (device.stream(), device.stream());
            device.destroy_stream(stream);
            assert_eq!(
                device
                    .record_event(device.create_event().unwrap(), if wrong { stream } else { other })
                    .is_err(),
                wrong
            );
        });
        expect("there is no such event", |device, wrong| {
            let event = device.recorded(device.stream());
            if wrong {
                device.destroy_event(event);
            }
            assert_eq!(device.query_event(event).is_err(), wrong);
        });
        expect("RecordEvent: there is no such event", |device, wrong| {
            let event = device.create_event().unwrap();
            if wrong {
                device.destroy_event(event);
            }
            assert_eq!(device.record_event(event, device.stream()).is_err(), wrong);
            assert_eq!(device.pending(), usize::from(!wrong));
        });
        expect("destroy_event: there is no such event", |device, wrong| {
            let event = device.create_event().unwrap();
            device.destroy_event(event);
            if wrong {
                device.destroy_event(event);
            }
        });
        expect("destroy_event: there is no such event", |device, wrong| {
            let event = device.create_event().unwrap();
            device.destroy_event(if wrong { Event(17) } else { event });
        });
        expect("a stream of another device", |device, wrong| {
            let other = FakeDevice::new(0);
            let stream = if wrong { other.stream() } else { device.stream() };
            assert_eq!(device.record_event(device.create_event().unwrap(), stream).is_err(), wrong);
        });
        expect("the stream records a graph", |device, wrong| {
            let stream = device.engine_stream();
            device.set_capturing(stream, true);
            device.set_capturing(stream, wrong);
            let event = device.create_event().unwrap();
            assert_eq!(device.wait_event(stream, event).is_err(), wrong);
        });
        expect("belongs to the engine", |device, wrong| {
            device.destroy_stream(if wrong { device.engine_stream() } else { device.stream() });
        });
    }
}

mod copies {
    use super::*;

    #[test]
    fn ranges_lie_within_one_allocation() {
        expect("is beyond the end of an allocation", |device, wrong| {
            let tensor = device.allocate_device(BYTES).unwrap() as usize;
            let at = tensor + usize::from(wrong);
            assert_eq!(device.copies(device.pinned(1), at, device.stream()).is_err(), wrong);
        });
        // A tensor that ends earlier than the copy; two that lie side by side.
        let tensor = Tensor::new(2 * BYTES);
        expect("crosses the border", |device, wrong| {
            device.add_device_memory(tensor.at(), BYTES);
            if !wrong {
                device.add_device_memory(tensor.at() + BYTES, BYTES);
            }
            assert_eq!(
                device.copies(device.pinned(1), tensor.at() + BYTES / 2, device.stream()).is_err(),
                wrong
            );
        });
        // One that begins later than the copy.
        expect("crosses the border", |device, wrong| {
            device.add_device_memory(tensor.at() + BYTES, BYTES);
            let at = tensor.at() + if wrong { BYTES / 2 } else { BYTES };
            assert_eq!(device.copies(device.pinned(1), at, device.stream()).is_err(), wrong);
        });
        // Registrations that lie side by side stay two.
        expect("crosses the border", |device, wrong| {
            for half in 0..2 {
                // SAFETY: the tensor outlives the device.
                unsafe { device.register_host(tensor.at() + half * BYTES, BYTES) }.unwrap();
            }
            let to = device.allocate_device(BYTES).unwrap() as usize;
            let at = tensor.at() + if wrong { BYTES / 2 } else { BYTES };
            assert_eq!(device.copies(at, to, device.stream()).is_err(), wrong);
        });
    }

    #[test]
    fn declarations_do_not_overlap() {
        let tensor = Tensor::new(2 * BYTES);
        expect("add_device_memory: ", |device, wrong| {
            device.add_device_memory(tensor.at(), BYTES);
            device.add_device_memory(tensor.at() + BYTES - usize::from(wrong), BYTES);
        });
    }

    #[test]
    fn copies_take_the_hosts_address_of_pinned_memory() {
        expect("only kernels take", |device, wrong| {
            let pinned = device.allocate_host(BYTES).unwrap();
            let to = device.allocate_device(BYTES).unwrap() as usize;
            let from = if wrong { pinned.device as usize } else { pinned.host };
            assert_eq!(device.copies(from, to, device.stream()).is_err(), wrong);
        });
    }

    #[test]
    fn the_copies_of_a_batch_are_apart() {
        let batch = |device: &FakeDevice, pieces: &[(usize, usize)], wrong: bool| {
            let stream = device.stream();
            let kept = device.batch(pieces, SourceOrder::Stream, stream);
            assert_eq!(kept.is_err(), wrong);
            end(device, stream);
        };
        expect("two destinations overlap", |device, wrong| {
            let (from, to) = (device.pinned(1), device.allocate_device(2 * BYTES).unwrap() as usize);
            batch(device, &[(from, to), (from, to + BYTES - usize::from(wrong))], wrong);
        });
        expect("a source overlaps a destination", |device, wrong| {
            let (from, to) = (device.pinned(1), device.allocate_device(3 * BYTES).unwrap() as usize);
            batch(device, &[(from, to), (to + BYTES - usize::from(wrong), to + 2 * BYTES)], wrong);
        });
    }

    #[test]
    fn the_arrays_of_a_batch_are_of_one_length_and_without_zeros() {
        for (text, sizes) in [
            ("copy 1 has no bytes", vec![BYTES, 0]),
            ("2 destinations, 2 sources and 1 sizes", vec![BYTES]),
            ("2 destinations, 2 sources and 0 sizes", vec![]),
        ] {
            expect(text, |device, wrong| {
                let (from, to) = (device.pinned(1) as u64, device.allocate_device(2 * BYTES).unwrap());
                let arrays = Arc::new(Descriptors {
                    destinations: vec![to, to + BYTES as u64],
                    sources: vec![from; 2],
                    sizes: if wrong { sizes.clone() } else { vec![BYTES; 2] },
                });
                let stream = device.stream();
                // SAFETY: the memory and the arrays live to the end of the work.
                let submitted = unsafe { device.copy_batch(&arrays, SourceOrder::Any, stream) };
                assert_eq!(submitted.is_err(), wrong);
                end(device, stream);
            });
        }
    }

    #[test]
    fn the_host_side_of_a_batch_is_pinned() {
        let pageable = Tensor::new(BYTES);
        expect("the source of copy 0 is not pinned", |device, wrong| {
            let stream = device.stream();
            let to = device.allocate_device(BYTES).unwrap() as usize;
            let from = if wrong { pageable.at() } else { device.pinned(1) };
            let kept = device.batch(&[(from, to)], SourceOrder::Any, stream);
            assert_eq!(kept.is_err(), wrong);
            end(device, stream);
        });
    }

    #[test]
    fn only_sources_of_the_host_are_read_at_any_time() {
        expect("copy 0 reads the device's memory out of the stream's order", |device, wrong| {
            let stream = device.stream();
            let from = device.allocate_device(BYTES).unwrap() as usize;
            let order = if wrong { SourceOrder::Any } else { SourceOrder::Stream };
            let kept = device.batch(&[(from, device.pinned(0))], order, stream);
            assert_eq!(kept.is_err(), wrong);
            end(device, stream);
        });
    }

    /// Without a word to the fake, as a program would.
    #[test]
    fn sources_stay_unchanged() {
        expect("the bytes that it reads", |device, wrong| {
            let stream = device.stream();
            let (from, to) = (device.pinned(1), device.allocate_device(BYTES).unwrap() as usize);
            device.copies(from, to, stream).unwrap();
            if !wrong {
                end(device, stream);
            }
            fill(from + 5, &[2]);
        });
    }
}

mod kernels {
    use super::*;

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
}

mod races {
    use super::*;

    #[test]
    fn a_copy_waits_for_the_engines_work() {
        expect("race: copy", |device, wrong| {
            let (ours, engine) = (device.stream(), device.engine_stream());
            let page = device.allocate_device(BYTES).unwrap() as usize;
            let range = page..page + BYTES;
            // Recorded before the work, the event does not stand for it.
            let early = device.recorded(engine);
            device.engine_work(engine, vec![], vec![range.clone()], filling(range, 4));
            let event = if wrong { early } else { device.recorded(engine) };
            device.wait_event(ours, event).unwrap();
            // Now even the bytes come out right, and it is still wrong.
            device.run_all();
            device.copies(page, device.pinned(0), ours).unwrap();
        });
    }

    #[test]
    fn the_engine_waits_for_a_load() {
        expect("race: ", |device, wrong| {
            let (ours, engine) = (device.stream(), device.engine_stream());
            let page = device.allocate_device(BYTES).unwrap() as usize;
            device.copies(device.pinned(4), page, ours).unwrap();
            let event = device.recorded(ours);
            if !wrong {
                device.wait_event(engine, event).unwrap();
            }
            device.engine_work(engine, vec![page..page + BYTES, 0..0], vec![], || ());
        });
    }

    #[test]
    fn the_cpu_reads_what_it_knows_to_have_arrived() {
        expect("race: read (host)", |device, wrong| {
            let stream = device.stream();
            let page = device.allocate_device(BYTES).unwrap() as usize;
            let slot = device.pinned(0);
            device.copies(page, slot, stream).unwrap();
            let event = device.recorded(stream);
            if wrong {
                // Ended, which an answer would have told.
                device.run_all();
            } else {
                while !device.query_event(event).unwrap() {}
            }
            device.host_reads(slot..slot + BYTES);
        });
    }

    #[test]
    fn the_cpu_writes_no_slot_that_is_being_read() {
        expect("ordered by nothing", |device, wrong| {
            let stream = device.stream();
            let (page, slot) = (device.allocate_device(BYTES).unwrap() as usize, device.pinned(0));
            device.copies(slot, page, stream).unwrap();
            if !wrong {
                end(device, stream);
            }
            device.host_writes(slot..slot + BYTES);
        });
    }

    #[test]
    fn each_pair_is_named() {
        let device = FakeDevice::new(2);
        let page = device.allocate_device(BYTES).unwrap() as usize;
        for _ in 0..3 {
            device.copies(device.pinned(0), page, device.stream()).unwrap();
        }
        let violations = device.settle();
        assert_eq!(violations.len(), 3, "{violations:#?}");
    }

    #[test]
    fn reading_together_is_no_race() {
        let device = FakeDevice::new(2);
        let slot = device.pinned(0);
        for _ in 0..3 {
            let page = device.allocate_device(BYTES).unwrap() as usize;
            device.copies(slot, page, device.stream()).unwrap();
            device.host_reads(slot..slot + BYTES);
        }
        assert_eq!(device.settle(), [""; 0]);
    }
}

/// A strict device says it on the spot.
#[test]
#[should_panic(expected = "a CUDA program does what it must not: destroy_event")]
fn a_strict_device_panics() {
    FakeDevice::options().strict(true).build().destroy_event(Event(1));
}

#[test]
fn pieces_without_bytes_are_nothing() {
    let device = FakeDevice::new(2);
    // SAFETY: nothing is touched.
    unsafe { device.copy(Piece { src: 1, dst: 2, bytes: 0 }, device.stream()) }.unwrap();
    assert_eq!((device.pending(), device.violations()), (0, vec![]));
}
