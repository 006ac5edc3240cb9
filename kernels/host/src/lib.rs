//! Runs the CUDA kernels of `kernels/` on a CPU, for tests.
//!
//! The same source is compiled as host C++ with AddressSanitizer and UndefinedBehaviorSanitizer (`build.rs`, `shim.h`,
//! `main.cpp`) into a program that takes cases from its standard input. A [`Case`] has a memory of its own, the *arena*;
//! all addresses are offsets into it. Only what the case's pieces name may be read or written: everything else is poisoned
//! while the kernel runs, so that one byte too far ends the program, with the sanitizer's report.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use kvcache_core::copy_engine::Piece;
use kvcache_cuda::kernels::Kernel;

/// In which order the threads of a launch run, each to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThreadOrder {
    /// As they are numbered.
    Forward,
    /// The last first.
    Reversed,
    /// Shuffled with this seed.
    Shuffled(u64),
}

/// One launch of one kernel.
#[derive(Clone)]
pub struct Case<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks of threads.
    pub grid: u32,
    /// Threads of a block: a multiple of 32.
    pub threads: u32,
    /// Their order.
    pub order: ThreadOrder,
    /// The kernel's arguments. Addresses of tables are filled in by the program; the one of [`PagedCopy`] layers is an offset
    /// into the first table.
    ///
    /// [`PagedCopy`]: kvcache_cuda::kernels::PagedCopy
    pub arguments: &'a [u8],
    /// Its tables, in the order of the arguments; empty where it takes fewer than three.
    pub tables: [&'a [u8]; 3],
    /// What the kernel may touch.
    pub pieces: &'a [Piece],
    /// The memory before the launch.
    pub arena: &'a [u8],
}

/// The running program. Cases run one after the other; after an error the program is gone.
pub struct Program {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    report: ChildStderr,
}

impl Program {
    /// Starts it.
    ///
    /// # Errors
    /// If the program does not start, for example because the build found no sanitizers.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new(env!("KERNELS_ON_CPU"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let missing = || io::Error::other("the program has no pipe");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let report = child.stderr.take().ok_or_else(missing)?;
        Ok(Self { child, input, output, report })
    }

    /// Runs a case; returns the memory after it.
    ///
    /// # Errors
    /// If the program ended; the message has the sanitizer's report.
    pub fn run(&mut self, case: &Case<'_>) -> io::Result<Vec<u8>> {
        let (order, seed) = match case.order {
            ThreadOrder::Forward => (0, 0),
            ThreadOrder::Reversed => (1, 0),
            ThreadOrder::Shuffled(seed) => (2, seed),
        };
        let mut message = Vec::new();
        for word in [case.kernel as u32, case.grid, case.threads, order] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        let lengths = case.tables.map(|table| table.len() as u64);
        let head = [seed, case.arguments.len() as u64].into_iter().chain(lengths);
        for word in head.chain([2 * case.pieces.len() as u64, case.arena.len() as u64]) {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(case.arguments);
        for table in case.tables {
            message.extend_from_slice(table);
        }
        for piece in case.pieces {
            for (begin, end) in [(piece.src, piece.src + piece.bytes), (piece.dst, piece.dst + piece.bytes)] {
                message.extend_from_slice(&(begin as u64).to_le_bytes());
                message.extend_from_slice(&(end as u64).to_le_bytes());
            }
        }
        message.extend_from_slice(case.arena);
        let mut arena = vec![0; case.arena.len()];
        // The program reads a whole case before it answers, so writing first cannot block for ever.
        let answered = self.input.write_all(&message).and_then(|()| self.input.flush());
        match answered.and_then(|()| self.output.read_exact(&mut arena)) {
            Ok(()) => Ok(arena),
            Err(error) => {
                let mut report = String::new();
                self.report.read_to_string(&mut report)?;
                let status = self.child.wait()?;
                Err(io::Error::other(format!(
                    "{}: the program ended with {status} ({error})\n{report}",
                    case.kernel.symbol()
                )))
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It waits for the next case; there is none. Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
