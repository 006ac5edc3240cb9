//! Every kernel, every byte: what a launch leaves in memory is what the reference says, whatever its grid and the order of
//! its threads; all other bytes are as before, and none was touched (`src/lib.rs` says how that is seen).

mod pages;
mod pieces;
mod tokens;

use kernels_on_cpu::{Case, Program, ThreadOrder};
use kvcache_core::copy_engine::Piece;
use kvcache_cuda::kernels::Kernel;
use proptest::prelude::*;

/// Grid, threads of a block, their order.
type Launch = (u32, u32, ThreadOrder);

fn launches() -> impl Strategy<Value = Launch> {
    let order = prop_oneof![
        Just(ThreadOrder::Forward),
        Just(ThreadOrder::Reversed),
        any::<u64>().prop_map(ThreadOrder::Shuffled),
    ];
    (1u32..6, prop::sample::select(vec![32u32, 64, 96, 256]), order)
}

/// Lays memory out: places follow each other, `gap` bytes apart.
#[derive(Default)]
struct Arena {
    end: usize,
}

impl Arena {
    fn place(&mut self, gap: usize, bytes: usize) -> usize {
        self.end += gap + bytes;
        self.end - bytes
    }

    /// Memory full of bytes that differ from place to place, destinations included: what is not written is seen.
    fn bytes(&self, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..self.end + 64).map(|_| next()).collect()
    }
}

/// Runs a kernel and compares all of its memory with the pieces, copied one after the other.
fn check(
    program: &mut Program,
    kernel: Kernel,
    (grid, threads, order): Launch,
    arguments: &[u8],
    tables: [&[u8]; 3],
    pieces: &[Piece],
    arena: &[u8],
) -> Result<(), TestCaseError> {
    let case = Case { kernel, grid, threads, order, arguments, tables, pieces, arena };
    let after = match program.run(&case) {
        Ok(after) => after,
        Err(error) => {
            *program = Program::start().map_err(|error| TestCaseError::fail(error.to_string()))?;
            return Err(TestCaseError::fail(error.to_string()));
        }
    };
    let mut expected = arena.to_vec();
    for piece in pieces {
        expected.copy_within(piece.src..piece.src + piece.bytes, piece.dst);
    }
    if let Some(at) = (0..arena.len()).find(|at| after[*at] != expected[*at]) {
        let what = pieces.iter().find(|piece| (piece.dst..piece.dst + piece.bytes).contains(&at));
        let (got, wanted) = (after[at], expected[at]);
        return Err(TestCaseError::fail(format!(
            "byte {at} is {got:#x}, not {wanted:#x}; it belongs to {what:?}"
        )));
    }
    Ok(())
}
