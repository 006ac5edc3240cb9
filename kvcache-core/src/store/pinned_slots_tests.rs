use super::*;
use crate::fakes::fake_copies::{CopyBehaviour, LazyCopies};
use crate::fakes::fake_memory::{FakeMemory, MemoryBugs, Slab};
use crate::slab::{Slab as RealSlab, SlabConfig};
use crate::store::SlabSlots;

fn wait_until(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(20), "it never happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn ended(slots: &PinnedSlots) -> Pinning {
    wait_until(|| !slots.is_growing());
    slots.pinning()
}

fn copies() -> Arc<LazyCopies> {
    Arc::new(LazyCopies::new(1, CopyBehaviour::default()))
}

#[test]
fn all_pages_are_pinned_once_and_given_back() {
    let copies = copies();
    // Slots of one and a half pages, so that pieces end within slots.
    let slab = RealSlab::open(&SlabConfig::anonymous(6000, 11)).unwrap();
    let (base, bytes) = (slab.base().as_ptr() as usize, slab.data_bytes());
    let inner = Arc::new(SlabSlots::new(slab, false));
    let slots = PinnedSlots::with_pieces(inner, Arc::clone(&copies) as _, 2 * page_bytes()).unwrap();
    let pinning = ended(&slots);
    assert_eq!((slots.usable_slots(), pinning.failure), (11, None));
    let ranges = copies.registered();
    assert_eq!(ranges[0].0, base);
    assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{ranges:?}");
    let end = ranges.last().map(|(start, bytes)| start + bytes).unwrap();
    assert!(
        end >= base + bytes - page_bytes() && end.is_multiple_of(page_bytes()) && pinning.bytes == end - base
    );
    drop(slots);
    assert!(copies.registered().is_empty());
}

#[test]
fn slots_are_usable_up_to_where_pinning_has_come() {
    let copies = copies();
    copies.refuse_to_register_after(5 * page_bytes());
    let slab = RealSlab::open(&SlabConfig::anonymous(6144, 11)).unwrap();
    let stride = slab.stride_bytes();
    let inner = Arc::new(SlabSlots::new(slab, false));
    let slots = PinnedSlots::with_pieces(inner, Arc::clone(&copies) as _, page_bytes()).unwrap();
    let pinning = ended(&slots);
    assert_eq!(pinning.bytes, 5 * page_bytes());
    let whole = (0..11).take_while(|slot| slot * stride + 6144 <= 5 * page_bytes()).count();
    assert_eq!(slots.usable_slots() as usize, whole);
    assert!(matches!(pinning.failure, Some(PinFailure::Refused(CopyFailure::Driver { .. }))) && whole > 1);
}

#[test]
fn memory_that_grows_is_pinned_as_it_does() {
    let copies = copies();
    let slab = Slab::new(8, page_bytes());
    let memory = FakeMemory::new(&slab, 0, MemoryBugs::default());
    let slots =
        PinnedSlots::with_pieces(Arc::clone(&memory) as _, Arc::clone(&copies) as _, 1 << 20).unwrap();
    assert!(slots.usable_slots() == 0 && slots.is_growing());
    memory.grow(3);
    // The fake's slots do not start at a page: the last of them is not whole before the next growth.
    wait_until(|| slots.usable_slots() >= 2);
    memory.grow(5);
    ended(&slots);
    assert_eq!(slots.usable_slots(), 8);
}

#[test]
fn what_was_found_filled_can_be_loaded_and_not_replaced() {
    let copies = copies();
    copies.refuse_to_register_after(0);
    let slab = Slab::new(8, page_bytes());
    let memory = FakeMemory::new(&slab, 8, MemoryBugs::default());
    let label = SlotLabel {
        key: BlockKey([1; 16]),
        parent: BlockKey::default(),
        engine_hash: Default::default(),
        fill: FillId(1),
        epoch: 0,
    };
    memory.begin_fill(SlotId(4), &label);
    memory.publish(SlotId(4), FillId(1));
    let slots = PinnedSlots::with_pieces(memory, copies, 1 << 20).unwrap();
    ended(&slots);
    assert_eq!(slots.usable_slots(), 0);
    assert_eq!(slots.warm_slots().len(), 1);
    assert!(slots.slot_address(SlotId(4)).is_some());
}

#[test]
fn what_is_not_populated_is_not_pinned() {
    let copies = copies();
    let slab = Slab::new(8, page_bytes());
    let memory = FakeMemory::new(&slab, 8, MemoryBugs::default());
    memory.populate(0, true);
    let slots =
        PinnedSlots::with_pieces(Arc::clone(&memory) as _, Arc::clone(&copies) as _, 1 << 20).unwrap();
    assert_eq!(slots.usable_slots(), 0);
    memory.populate(3, true);
    wait_until(|| slots.usable_slots() >= 2);
    assert!(slots.usable_slots() <= 3 && slots.is_growing());
    memory.populate(5, false);
    let pinning = ended(&slots);
    assert_eq!(slots.usable_slots(), 5);
    assert_eq!(pinning.failure, Some(PinFailure::MemoryShort { populated: 5, slot_count: 8 }));
    let end = copies.registered().iter().map(|(start, bytes)| start + bytes).max().unwrap();
    assert!(end < slots.slot_address(SlotId(5)).unwrap() + page_bytes(), "beyond what is populated");
}

#[test]
fn one_call_pins_no_more_than_others_can_wait_for() {
    let copies = copies();
    let config = SlabConfig { prefault: false, ..SlabConfig::anonymous(1 << 20, 80) };
    let slab = RealSlab::open(&config).unwrap();
    let slots = PinnedSlots::new(Arc::new(SlabSlots::new(slab, false)), Arc::clone(&copies) as _).unwrap();
    ended(&slots);
    let pieces: Vec<usize> = copies.registered().iter().map(|(_, bytes)| bytes >> 20).collect();
    assert_eq!(pieces, [32, 32, 16]);
    let (short, long) = (Duration::from_millis(3), Duration::from_secs(3));
    assert_eq!((rest_after(short), rest_after(long)), (short, Duration::from_millis(100)));
}

#[test]
fn a_driver_that_is_busy_with_a_graph_is_asked_again() {
    for code in [900, 901, 906, 907] {
        let copies = copies();
        copies.refuse_to_register(code, 2);
        let slab = Slab::new(8, page_bytes());
        let memory = FakeMemory::new(&slab, 8, MemoryBugs::default());
        let slots = PinnedSlots::with_pieces(memory, Arc::clone(&copies) as _, 2 * page_bytes()).unwrap();
        let pinning = ended(&slots);
        assert_eq!((slots.usable_slots(), pinning.failure), (8, None), "{code}");
    }
}

/// Whatever the thread waits for, dropping ends it: otherwise this test does not end.
#[test]
fn a_driver_that_stays_busy_delays_no_end() {
    let copies = copies();
    copies.refuse_to_register(900, usize::MAX);
    let slab = Slab::new(8, page_bytes());
    let memory = FakeMemory::new(&slab, 8, MemoryBugs::default());
    let slots = PinnedSlots::new(memory, Arc::clone(&copies) as _).unwrap();
    wait_until(|| copies.refusals() > 1);
    assert!(slots.pinning().is_running && slots.pinning().failure.is_none());
    drop(slots);
    assert!(copies.registered().is_empty());
}
