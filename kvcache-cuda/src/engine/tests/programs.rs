//! Random programs: an engine that computes in its own stream, loads and offloads around it, in all ways at once.

use proptest::prelude::*;

use super::*;

const CELL: usize = 1000;
const CELLS: usize = 24;

/// What the program does next. Cells are numbered on both sides.
#[derive(Clone, Debug)]
enum Step {
    /// The engine's stream writes to cells of the device.
    Compute { cells: Vec<usize>, value: u8 },
    /// Host cells to device cells, before what the engine's stream gets next.
    Load { moves: Vec<(usize, usize)>, urgent: bool },
    /// Device cells to host cells, after what the engine's stream holds.
    Offload { moves: Vec<(usize, usize)> },
}

fn moves() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let cells = || Just((0..CELLS).collect::<Vec<_>>()).prop_shuffle();
    (cells(), cells(), 1..CELLS)
        .prop_map(|(host, device, count)| host.into_iter().zip(device).take(count).collect())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (prop::collection::vec(0..CELLS, 1..6), any::<u8>())
            .prop_map(|(cells, value)| Step::Compute { cells, value }),
        (moves(), any::<bool>()).prop_map(|(moves, urgent)| Step::Load { moves, urgent }),
        moves().prop_map(|moves| Step::Offload { moves }),
    ]
}

/// Both sides as a sequential program would leave them.
struct Oracle {
    host: Vec<u8>,
    device: Vec<u8>,
}

impl Oracle {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Compute { cells, value } => {
                for cell in cells {
                    self.device[cell * CELL..(cell + 1) * CELL].fill(*value);
                }
            }
            Step::Load { moves, .. } => {
                for (host, device) in moves {
                    self.device[device * CELL..][..CELL].copy_from_slice(&self.host[host * CELL..][..CELL]);
                }
            }
            Step::Offload { moves } => {
                for (host, device) in moves {
                    self.host[host * CELL..][..CELL].copy_from_slice(&self.device[device * CELL..][..CELL]);
                }
            }
        }
    }
}

/// Runs a program. The one thing that the CPU waits for is an offload that is loaded again, or loaded from before.
fn run(
    seed: u64,
    path: Option<CopyPath>,
    steps: &[Step],
    order: bool,
    fences: bool,
) -> (Rig, Vec<String>, Oracle) {
    let config = CudaCopyConfig { path, call_bytes: 3 * CELL, kernel_chunk_bytes: 64, ..quiet() };
    let rig = rig_on(FakeDevice::options().seed(seed), config);
    let stream = rig.fake.engine_stream();
    let length = rig.host.length;
    let mut oracle = Oracle { host: rig.host.read(0, length), device: rig.device.read(0, length) };
    let mut pending: Vec<Ticket> = Vec::new();
    for step in steps {
        oracle.apply(step);
        let (direction, moves, urgent) = match step {
            Step::Compute { cells, value } => {
                let base = rig.device.address();
                let ranges: Vec<_> =
                    cells.iter().map(|cell| base + cell * CELL..base + (cell + 1) * CELL).collect();
                let (written, value) = (ranges.clone(), *value);
                rig.fake.engine_work(stream, Vec::new(), ranges, move || {
                    for address in written.into_iter().flatten() {
                        // SAFETY: the device's memory, which outlives the program and which only the fake's operations touch.
                        unsafe { std::ptr::write_volatile(address as *mut u8, value) };
                    }
                });
                continue;
            }
            Step::Load { moves, urgent } => (Direction::Load, moves, *urgent),
            Step::Offload { moves } => (Direction::Offload, moves, false),
        };
        // The Directory orders what happens to a slot: nothing is loaded or filled before the job before it has ended.
        for ticket in pending.drain(..) {
            assert_eq!(rig.wait(ticket), CopyState::Done);
        }
        let places: Vec<_> = moves.iter().map(|(host, device)| (host * CELL, device * CELL, CELL)).collect();
        let fence = fences.then(|| rig.engine.fence(stream.0).unwrap());
        let ticket = rig.submit(CopyBatch { fence, urgent, ..rig.batch(direction, &places) }).unwrap();
        if order {
            rig.engine.order_after(ticket, stream.0).unwrap();
        }
        pending.push(ticket);
    }
    for ticket in pending {
        assert_eq!(rig.wait(ticket), CopyState::Done);
    }
    let violations = rig.fake.settle();
    (rig, violations, oracle)
}

fn paths() -> impl Strategy<Value = Option<CopyPath>> {
    prop::sample::select(vec![None, Some(CopyPath::DmaBatch), Some(CopyPath::Dma), Some(CopyPath::Kernel)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_program_does_what_it_would_do_one_step_at_a_time(
        seed in any::<u64>(), path in paths(), steps in prop::collection::vec(step(), 1..24),
    ) {
        let (rig, violations, oracle) = run(seed, path, &steps, true, true);
        prop_assert_eq!(violations, Vec::<String>::new());
        prop_assert!(rig.device.read(0, rig.device.length) == oracle.device);
        prop_assert!(rig.host.read(0, rig.host.length) == oracle.host);
        prop_assert_eq!(rig.fake.pageable_copies(), 0);
    }
}

/// The negative control: without its waits the same program is found out.
#[test]
fn a_missing_wait_is_found() {
    let compute = |value| Step::Compute { cells: vec![0, 1, 2], value };
    let all: Vec<(usize, usize)> = (0..CELLS).map(|cell| (cell, cell)).collect();
    let offload = [compute(1), Step::Offload { moves: all.clone() }, compute(2)];
    let load = [compute(1), Step::Load { moves: all, urgent: true }, compute(2)];
    for steps in [offload, load] {
        for (order, fences) in [(false, true), (true, false)] {
            assert_eq!(run(1, None, &steps, true, true).1, Vec::<String>::new());
            assert!(!run(1, None, &steps, order, fences).1.is_empty(), "{order} {fences}");
        }
    }
}
