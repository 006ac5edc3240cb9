//! Random programs against a plain oracle: a graph of what is ordered before what, searched without any clocks.
//!
//! A program that the graph calls free of races must give the bytes of running its steps one after the other, with no
//! violation. One that has a race must be found out, whatever its bytes came out as.

use std::sync::Arc;

use kvcache_cuda::driver::{Driver, Event, SourceOrder, Stream};
use kvcache_cuda::fake::FakeDevice;

use crate::program::{BYTES, Calls, Tensor, bytes, fill};

/// The first are pinned, the others are the device's.
const REGIONS: usize = 6;
const PINNED: usize = 3;
const STREAMS: usize = 4;

/// SplitMix64.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }

    /// Two different regions of `from..REGIONS`.
    fn two(&mut self) -> (usize, usize) {
        let first = self.below(REGIONS);
        (first, (first + 1 + self.below(REGIONS - 1)) % REGIONS)
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    /// One region to another.
    Copy {
        stream: usize,
        src: usize,
        dst: usize,
    },
    /// The same by a batch; sources in any order are pinned.
    Batch {
        stream: usize,
        src: usize,
        dst: usize,
        order: SourceOrder,
    },
    /// The engine reads one region and adds it to another.
    Add {
        stream: usize,
        src: usize,
        dst: usize,
    },
    HostRead(usize),
    HostWrite(usize, u8),
    /// `event` belongs to the step of this number, and is recorded again each time.
    Record {
        stream: usize,
        event: usize,
    },
    Wait {
        stream: usize,
        event: usize,
    },
    Synchronize {
        event: usize,
        polling: bool,
    },
}

impl Step {
    fn reads(self) -> Option<usize> {
        match self {
            Self::Copy { src, .. } | Self::Batch { src, .. } | Self::Add { src, .. } => Some(src),
            Self::HostRead(region) => Some(region),
            _ => None,
        }
    }

    fn writes(self) -> Option<usize> {
        match self {
            Self::Copy { dst, .. } | Self::Batch { dst, .. } | Self::Add { dst, .. } => Some(dst),
            Self::HostWrite(region, _) => Some(region),
            _ => None,
        }
    }

    /// The stream that it goes to, or the host.
    fn stream(self) -> Option<usize> {
        match self {
            Self::Copy { stream, .. } | Self::Batch { stream, .. } | Self::Add { stream, .. } => Some(stream),
            Self::Record { stream, .. } | Self::Wait { stream, .. } => Some(stream),
            Self::HostRead(_) | Self::HostWrite(..) | Self::Synchronize { .. } => None,
        }
    }

    fn is_sync(self) -> bool {
        matches!(self, Self::Wait { .. } | Self::Synchronize { .. })
    }
}

/// The graph: for each step, which steps are before it (a bit for each), and which are before its reads.
struct Order {
    before: Vec<u128>,
    before_reads: Vec<u128>,
}

fn order(program: &[Step]) -> Order {
    assert!(program.len() <= 128);
    let mut order = Order { before: Vec::new(), before_reads: Vec::new() };
    let (mut last_of_stream, mut last_of_host) = ([None; STREAMS], None);
    let mut recorded = vec![None; program.len()];
    for (index, step) in program.iter().enumerate() {
        let with = |step: Option<usize>| step.map_or(0, |step: usize| order.before[step] | 1 << step);
        let host = with(last_of_host);
        let before = match *step {
            Step::Synchronize { event, .. } => host | with(recorded[event]),
            Step::Wait { stream, event } => host | with(last_of_stream[stream]) | with(recorded[event]),
            _ => host | step.stream().map_or(0, |stream| with(last_of_stream[stream])),
        };
        let any = matches!(step, Step::Batch { order: SourceOrder::Any, .. });
        order.before.push(before);
        order.before_reads.push(if any { host } else { before });
        match step.stream() {
            Some(stream) => last_of_stream[stream] = Some(index),
            None => last_of_host = Some(index),
        }
        if let Step::Record { event, .. } = step {
            recorded[*event] = Some(index);
        }
    }
    order
}

/// Steps that `index` must be after and is not.
fn races(program: &[Step], order: &Order, index: usize) -> Vec<usize> {
    let step = program[index];
    let unordered = |other: &usize| {
        let (earlier, bit) = (program[*other], 1u128 << *other);
        let after_reads = order.before_reads[index] & bit != 0;
        let after = order.before[index] & bit != 0;
        let reads_written = step.reads().is_some_and(|region| earlier.writes() == Some(region));
        let writes_used =
            step.writes().is_some() && [earlier.writes(), earlier.reads()].contains(&step.writes());
        (reads_written && !after_reads) || (writes_used && !after)
    };
    (0..index).filter(unordered).collect()
}

fn has_race(program: &[Step]) -> bool {
    let order = order(program);
    (0..program.len()).any(|index| !races(program, &order, index).is_empty())
}

/// A program whose accesses are all ordered, with waits that this needs and some that it does not.
fn correct(choices: &mut Choices) -> Vec<Step> {
    let mut program = Vec::new();
    while program.len() < 60 {
        let (src, dst) = choices.two();
        let stream = choices.below(STREAMS);
        let step = match choices.below(10) {
            0..=2 => Step::Copy { stream, src, dst },
            3 if stream > 0 => Step::Batch { stream, src, dst, order: SourceOrder::Stream },
            4 | 5 if stream > 0 && src < PINNED => Step::Batch { stream, src, dst, order: SourceOrder::Any },
            6 | 7 => Step::Add { stream, src, dst },
            8 => Step::HostRead(src),
            9 => Step::HostWrite(dst, choices.below(256) as u8),
            _ => continue,
        };
        if choices.below(4) == 0 && !program.is_empty() {
            // A wait for anything, or for nothing: most of them change nothing.
            let event = choices.below(program.len());
            program.push(Step::Wait { stream: choices.below(STREAMS), event });
        }
        loop {
            program.push(step);
            let index = program.len() - 1;
            let Some(other) = races(&program, &order(&program), index).pop() else { break };
            program.pop();
            // Each step's event is recorded right after it.
            let any = matches!(step, Step::Batch { order: SourceOrder::Any, .. });
            program.push(match step.stream() {
                Some(stream) if !(any && program[other].writes() == step.reads()) => {
                    Step::Wait { stream, event: other }
                }
                _ => Step::Synchronize { event: other, polling: choices.below(2) == 0 },
            });
        }
        if let Some(stream) = step.stream() {
            program.push(Step::Record { stream, event: program.len() - 1 });
        }
    }
    program
}

/// What is where after the steps, one after the other.
fn sequential(program: &[Step]) -> Vec<u8> {
    let mut regions: Vec<u8> = (0..REGIONS as u8).collect();
    for step in program {
        match *step {
            Step::Copy { src, dst, .. } | Step::Batch { src, dst, .. } => regions[dst] = regions[src],
            Step::Add { src, dst, .. } => {
                regions[dst] = regions[dst].wrapping_mul(3).wrapping_add(regions[src])
            }
            Step::HostWrite(region, byte) => regions[region] = byte,
            _ => {}
        }
    }
    regions
}

/// What is where after the program has run on a fake, if each region is of one byte; and what was wrong with it.
fn run(program: &[Step], seed: u64) -> (Vec<Option<u8>>, Vec<String>) {
    let device = FakeDevice::new(seed);
    let tensors: Vec<Tensor> = (PINNED..REGIONS).map(|_| Tensor::on(&device, BYTES)).collect();
    let pinned = (0..PINNED).map(|_| device.allocate_host(BYTES).unwrap().host);
    let regions: Vec<usize> = pinned.chain(tensors.iter().map(Tensor::at)).collect();
    for (index, at) in regions.iter().enumerate() {
        fill(*at, &[index as u8; BYTES]);
    }
    let streams = [Stream(0), device.engine_stream(), device.stream(), device.stream()];
    let events: Vec<Event> = program.iter().map(|_| device.create_event().unwrap()).collect();
    let range = |region: usize| regions[region]..regions[region] + BYTES;
    let mut kept = Vec::new();
    for step in program {
        match *step {
            Step::Copy { stream, src, dst } => {
                device.copies(regions[src], regions[dst], streams[stream]).unwrap();
            }
            Step::Batch { stream, src, dst, order } => {
                kept.push(device.batch(&[(regions[src], regions[dst])], order, streams[stream]).unwrap());
            }
            Step::Add { stream, src, dst } => {
                let (from, to) = (regions[src], regions[dst]);
                device.engine_work(streams[stream], vec![range(src)], vec![range(dst)], move || {
                    let add = |(to, from): (u8, u8)| to.wrapping_mul(3).wrapping_add(from);
                    let sums = bytes(to, BYTES).into_iter().zip(bytes(from, BYTES)).map(add);
                    fill(to, &sums.collect::<Vec<_>>());
                });
            }
            Step::HostRead(region) => device.host_reads(range(region)),
            Step::HostWrite(region, byte) => {
                device.host_writes(range(region));
                fill(regions[region], &[byte; BYTES]);
            }
            Step::Record { stream, event } => device.record_event(events[event], streams[stream]).unwrap(),
            Step::Wait { stream, event } => device.wait_event(streams[stream], events[event]).unwrap(),
            Step::Synchronize { event, polling: true } => {
                while !device.query_event(events[event]).unwrap() {}
            }
            Step::Synchronize { event, polling: false } => device.synchronize_event(events[event]).unwrap(),
        }
    }
    let violations = device.settle();
    let one =
        |at: &usize| bytes(*at, BYTES).iter().all(|byte| *byte == bytes(*at, 1)[0]).then(|| bytes(*at, 1)[0]);
    drop(kept.into_iter().map(Arc::into_inner));
    (regions.iter().map(one).collect(), violations)
}

#[test]
fn synchronised_programs_give_the_sequential_bytes_and_no_violation() {
    let mut waits = 0;
    for seed in 0..400 {
        let program = correct(&mut Choices(seed));
        assert!(!has_race(&program));
        waits += program.iter().filter(|step| step.is_sync()).count();
        let (regions, violations) = run(&program, seed);
        assert_eq!(violations, [""; 0], "seed {seed}: {program:#?}");
        let expected: Vec<_> = sequential(&program).into_iter().map(Some).collect();
        assert_eq!(regions, expected, "seed {seed}: {program:#?}");
    }
    assert!(waits > 2000, "{waits}");
}

#[test]
fn a_wait_that_mattered_is_missed_and_one_that_did_not_is_not() {
    let (mut wrong, mut wrong_bytes, mut right) = (0, 0, 0);
    for seed in 0..1000 {
        let mut choices = Choices(seed);
        let mut program = correct(&mut choices);
        let waits: Vec<usize> = (0..program.len()).filter(|index| program[*index].is_sync()).collect();
        let removed = waits[choices.below(waits.len())];
        // Steps are known by their number, so something that changes nothing takes its place.
        program[removed] = Step::Record { stream: 1, event: removed };
        let (regions, violations) = run(&program, seed);
        if has_race(&program) {
            wrong += 1;
            assert!(violations.iter().any(|text| text.starts_with("race: ")), "seed {seed}: {program:#?}");
            wrong_bytes +=
                usize::from(regions != sequential(&program).into_iter().map(Some).collect::<Vec<_>>());
        } else {
            right += 1;
            assert_eq!(violations, [""; 0], "seed {seed}: {program:#?}");
        }
    }
    assert!(wrong > 500 && right > 50, "{wrong} with a race, {right} without");
    // What looking at the bytes alone would have missed.
    assert!(wrong_bytes > 50 && wrong_bytes < wrong, "{wrong_bytes} of {wrong}");
}
