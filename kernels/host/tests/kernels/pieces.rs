//! Tables of pieces.

use std::cell::RefCell;

use kernels_on_cpu::{Case, Program, ThreadOrder};
use kvcache_core::copy_engine::Piece;
use kvcache_cuda::kernels::{Kernel, PieceCopy, PieceEntry, table_bytes};
use proptest::prelude::*;

use super::{Arena, Launch, check, launches};

fn run(
    program: &mut Program,
    launch: Launch,
    pieces: &[Piece],
    chunk_bytes: u32,
    arena: &[u8],
) -> Result<(), TestCaseError> {
    let entries: Vec<PieceEntry> = pieces.iter().copied().map(PieceEntry::from).collect();
    let copy =
        PieceCopy::new(0, &entries, chunk_bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let tables = [table_bytes(&entries), &[], &[]];
    check(program, Kernel::CopyPieces, launch, table_bytes(&[copy]), tables, pieces, arena)
}

/// Lengths of every kind, and gaps before source and destination that give any alignment.
fn shapes() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    let bytes = prop_oneof![0usize..64, 64usize..700, 0usize..20_000, Just(512), Just(16 << 10)];
    let gap = || prop_oneof![0usize..40, Just(16)];
    prop::collection::vec((bytes, gap(), gap()), 0..16)
}

#[test]
#[cfg_attr(not(sanitizers), ignore = "g++ with AddressSanitizer is missing")]
fn any_pieces_arrive_and_nothing_else_changes() {
    let program = RefCell::new(Program::start().unwrap());
    let chunk_bytes = prop::sample::select(vec![16u32, 48, 512, 8192]);
    proptest!(|(shapes in shapes(), launch in launches(), chunk_bytes in chunk_bytes, seed: u64, reverse: bool)| {
        let mut arena = Arena::default();
        let mut pieces: Vec<Piece> = shapes
            .iter()
            .map(|(bytes, gap, _)| Piece { src: arena.place(*gap, *bytes), dst: 0, bytes: *bytes })
            .collect();
        if reverse {
            pieces.reverse();
        }
        for (piece, (_, _, gap)) in pieces.iter_mut().zip(&shapes) {
            piece.dst = arena.place(*gap, piece.bytes);
        }
        run(&mut program.borrow_mut(), launch, &pieces, chunk_bytes, &arena.bytes(seed))?;
    });
}

#[test]
#[cfg_attr(not(sanitizers), ignore = "g++ with AddressSanitizer is missing")]
fn every_short_length_at_every_alignment() {
    let mut arena = Arena::default();
    let mut pieces = Vec::new();
    for bytes in 0..64 {
        for (src_past, dst_past) in (0..16).flat_map(|src| (0..16).map(move |dst| (src, dst))) {
            let src = arena.place(0, 80) + src_past;
            let dst = arena.place(0, 80) + dst_past;
            pieces.push(Piece { src, dst, bytes });
        }
    }
    let mut program = Program::start().unwrap();
    for order in [ThreadOrder::Forward, ThreadOrder::Reversed, ThreadOrder::Shuffled(7)] {
        run(&mut program, (3, 64, order), &pieces, 16, &arena.bytes(1)).unwrap();
    }
}

/// A page of 2 MiB, in chunks that end at odd places.
#[test]
#[cfg_attr(not(sanitizers), ignore = "g++ with AddressSanitizer is missing")]
fn large_pieces_are_cut_without_gaps() {
    let mut program = Program::start().unwrap();
    for (src_gap, dst_gap) in [(0, 0), (5, 0), (8, 12), (3, 16)] {
        let mut arena = Arena::default();
        let bytes = (2 << 20) + 13;
        let (src, dst) = (arena.place(src_gap, bytes), arena.place(dst_gap, bytes));
        let piece = Piece { src, dst, bytes };
        run(&mut program, (8, 256, ThreadOrder::Reversed), &[piece], 8192, &arena.bytes(2)).unwrap();
    }
}

/// The harness must see what it is there to see: here one byte fewer is named than the kernel is told to copy.
#[test]
#[cfg_attr(not(sanitizers), ignore = "g++ with AddressSanitizer is missing")]
fn one_byte_too_far_ends_the_program() {
    for (missing_src, missing_dst) in [(true, false), (false, true)] {
        let told = [PieceEntry { src: 0, dst: 512, bytes: 100 }];
        let copy = [PieceCopy::new(0, &told, 16).unwrap()];
        let named = |missing: bool| 100 - usize::from(missing);
        // Sources and destinations of pieces of their own, since a piece has one length.
        let allowed = [
            Piece { src: 0, dst: 0, bytes: named(missing_src) },
            Piece { src: 512, dst: 512, bytes: named(missing_dst) },
        ];
        let case = Case {
            kernel: Kernel::CopyPieces,
            grid: 1,
            threads: 32,
            order: ThreadOrder::Forward,
            arguments: table_bytes(&copy),
            tables: [table_bytes(&told), &[], &[]],
            pieces: &allowed,
            arena: &[0; 1024],
        };
        let error = Program::start().unwrap().run(&case).unwrap_err().to_string();
        let access = if missing_src { "READ" } else { "WRITE" };
        assert!(
            error.contains("use-after-poison") && error.contains(&format!("{access} of size 1")),
            "{error}"
        );
    }
}
