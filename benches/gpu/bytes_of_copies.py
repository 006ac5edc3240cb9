"""Part `copies`: every path moves every byte to its place, and no other byte.

Pieces of random sizes lie in random order and at random places on both sides, with bytes between them that nothing may
touch. Source and destination are random; afterwards the whole destination is compared with what it must be.
"""

from dataclasses import dataclass

import numpy as np
import torch
from aibrix_connector import _native

from benches.gpu.machine import Machine, Tensor, on_host
from benches.gpu.report import Options, Report

PATHS = ("dma_batch", "dma", "kernel")
DIRECTIONS = ("load", "offload")
PAGE = 4096
WAIT_S = 20.0
"""Far beyond what any of these copies takes: a copy that has not ended by then never will."""


@dataclass(frozen=True)
class Kind:
    """What pieces are like."""

    name: str
    least_bytes: int
    most_bytes: int
    step: int
    """Sizes, and the gaps between pieces, are multiples of it."""


KINDS = (
    Kind("whole vectors", 512, 2 << 20, 16),
    Kind("odd sizes and places", 1, 2 << 20, 1),
    Kind("many small", 512, 16 << 10, 8),
)

IN_TURNS = Kind("odd sizes and places, in small batches", 4 << 10, 2 << 20, 1)
"""Few enough for all batches to be in flight at once: an engine takes no more than some hundred single copies."""

Piece = tuple[int, int, int]
"""Source, destination and bytes: offsets here, addresses for the engine."""


def run(machine: Machine, report: Report, options: Options) -> None:
    """Each path, direction and kind of pieces, and both directions at once."""
    bounds = Bounds(arena_bytes=64 * PAGE, most_bytes=4 * PAGE) if options.fake else Bounds(64 << 20, 4 << 20)
    rounds = 1 if options.fake or options.quick else 2
    rng = np.random.default_rng(4)
    auto = machine.copies("auto", [])
    remarks = auto.describe()["remarks"]
    report.note("device", auto.describe())
    report.check("the kernels' image is loaded", "kernel" in auto.describe()["paths"], "; ".join(remarks))
    del auto
    for path in PATHS:
        test = Arenas(machine, path, bounds, rng, options)
        if path not in test.copies.describe()["paths"]:
            if path == "dma_batch":
                report.skip(f"{path}: bytes", "; ".join(remarks))
            test.close()
            continue
        for direction in DIRECTIONS:
            for kind in KINDS:
                problems = [found for _ in range(rounds) for found in test.one_way(direction, kind)]
                report.check(f"{path}, {direction}, {kind.name}: bytes", not problems, "; ".join(problems))
        problems = [found for _ in range(rounds) for found in test.both_ways()]
        report.check(f"{path}, both directions at once: bytes", not problems, "; ".join(problems))
        problems = test.used_only(path)
        report.check(f"{path}: it is what has copied", not problems, "; ".join(problems))
        if path == "dma":
            problems = test.not_pinned()
            report.check(
                "memory that is not pinned: loads work, offloads are refused", not problems, "; ".join(problems)
            )
        violations = test.copies.violations()
        report.check(f"{path}: nothing that no CUDA program may do", not violations, "; ".join(violations[:3]))
        test.close()


@dataclass(frozen=True)
class Bounds:
    """Sizes of a test."""

    arena_bytes: int
    most_bytes: int


class Arenas:
    """Memory on both sides, twice, and a copy engine with one path."""

    def __init__(self, machine: Machine, path: str, bounds: Bounds, rng: np.random.Generator, options: Options) -> None:
        self._machine, self._bounds, self._rng, self._options = machine, bounds, rng, options
        count = bounds.arena_bytes
        self._device = [machine.on_device(count) for _ in DIRECTIONS]
        self._host = [on_host(count) for _ in DIRECTIONS]
        self.copies = machine.copies(path, self._device)
        # Three ranges side by side: a piece that crosses from one to the next has to be cut.
        self._cuts = [count // 4 // PAGE * PAGE, count * 2 // 3 // PAGE * PAGE]
        self._ranges = list(zip([0, *self._cuts], [*self._cuts, count], strict=True))
        for host in self._host:
            for start, end in self._ranges:
                self.copies.register(host.data_ptr() + start, end - start)

    def close(self) -> None:
        """Gives pinned memory back."""
        for host in self._host:
            for start, _ in self._ranges:
                self.copies.unregister(host.data_ptr() + start)

    def one_way(self, direction: str, kind: Kind) -> list[str]:
        """Copies pieces in one direction; returns what is wrong."""
        transfer = self._prepare(direction, kind, 0)
        crossing = sum(self._crosses(transfer, piece) for piece in transfer.pieces)
        problems = self._finish([(transfer, self._submit(transfer))])
        # Small pieces may all miss the two borders.
        if crossing == 0 and kind.most_bytes > self._bounds.most_bytes // 4:
            problems.append("no piece crossed from one pinned range to the next: the test has lost its sense")
        return problems

    def both_ways(self) -> list[str]:
        """Loads and offloads in many small batches, in turns."""
        transfers = [self._prepare(direction, IN_TURNS, index) for index, direction in enumerate(DIRECTIONS)]
        tickets: list[list[int]] = [[], []]
        most = max(len(transfer.pieces) for transfer in transfers)
        # Kernels have tables for so many launches in flight, and leave what is beyond to another path.
        step = -(-most // 12)
        for at in range(0, most, step):
            for index, transfer in enumerate(transfers):
                if some := transfer.pieces[at : at + step]:
                    tickets[index] += self._submit(transfer, some)
        return self._finish(list(zip(transfers, tickets, strict=True)))

    def used_only(self, path: str) -> list[str]:
        """Returns what other paths have copied in place of this one, by the engine's own counts."""
        counts = counted(self.copies)
        problems = [f"{batches} batches by {name}" for (_, name), batches in counts.items() if name != path]
        problems += [f"no {direction} by it" for direction in DIRECTIONS if not counts.get((direction, path))]
        return problems + (self.copies.describe()["remarks"] if problems else [])

    def not_pinned(self) -> list[str]:
        """Copies between the device and memory that nobody has pinned."""
        problems = []
        loose = self._random(PAGE)
        device = self._device[0]
        ticket = self.copies.submit("load", [(loose.data_ptr(), device.data_ptr(), PAGE)])
        if not self.copies.wait(ticket, WAIT_S) or not torch.equal(device[:PAGE].cpu(), loose):
            problems.append("the load has brought other bytes")
        if self.copies.describe()["pageable_batches"] != 1:
            problems.append("it was not counted")
        try:
            self.copies.submit("offload", [(device.data_ptr(), loose.data_ptr(), PAGE)])
            problems.append("the offload was accepted")
        except ValueError:
            pass
        return problems

    def _prepare(self, direction: str, kind: Kind, index: int) -> "Transfer":
        host, device = self._host[index], self._device[index]
        source, poison = self._random(self._bounds.arena_bytes), self._random(self._bounds.arena_bytes)
        pieces = scattered(self._rng, self._bounds, kind)
        (host if direction == "load" else device).copy_(source)
        (device if direction == "load" else host).copy_(poison)
        self._machine.synchronize()
        wanted = poison
        for src, dst, count in pieces:
            wanted[dst : dst + count] = source[src : src + count]
        ends = (host, device) if direction == "load" else (device, host)
        return Transfer(direction, pieces, *ends, wanted)

    def _submit(self, transfer: "Transfer", pieces: list[Piece] | None = None) -> list[int]:
        source, target = transfer.source.data_ptr(), transfer.target.data_ptr()
        addresses = [(source + src, target + dst, count) for src, dst, count in pieces or transfer.pieces]
        return [self.copies.submit(transfer.direction, addresses, urgent=bool(self._rng.integers(2)))]

    def _finish(self, transfers: list[tuple["Transfer", list[int]]]) -> list[str]:
        problems = []
        for transfer, tickets in transfers:
            for ticket in tickets:
                if not self.copies.wait(ticket, WAIT_S):
                    problems.append(f"a batch has not ended within {WAIT_S:g} s")
            if self._options.sabotage == "byte":
                transfer.target[transfer.pieces[0][1]] ^= 1
            if difference := first_difference(transfer.target, transfer.wanted):
                problems.append(f"{transfer.direction} of {len(transfer.pieces)} pieces: {difference}")
        return problems

    def _crosses(self, transfer: "Transfer", piece: Piece) -> bool:
        start = piece[0] if transfer.direction == "load" else piece[1]
        return any(start < cut < start + piece[2] for cut in self._cuts)

    def _random(self, count: int) -> Tensor:
        words = self._rng.integers(0, 1 << 63, count // 8, dtype=np.int64)
        return torch.from_numpy(words).view(torch.uint8)


@dataclass(frozen=True)
class Transfer:
    """Pieces to copy, and what the target must be afterwards."""

    direction: str
    pieces: list[Piece]
    source: Tensor
    target: Tensor
    wanted: Tensor


def scattered(rng: np.random.Generator, bounds: Bounds, kind: Kind) -> list[Piece]:
    """Returns pieces that fill an arena on both sides, in orders that have nothing to do with each other."""
    most = min(kind.most_bytes, bounds.most_bytes)
    sizes: list[int] = []
    gap_most = 8 * kind.step
    room = bounds.arena_bytes
    while len(sizes) < 8192:
        size = int(np.exp(rng.uniform(np.log(kind.least_bytes), np.log(most)))) // kind.step * kind.step
        size = max(size, kind.step)
        if size + gap_most > room:
            break
        sizes.append(size)
        room -= size + gap_most
    places: list[list[int]] = [[0] * len(sizes) for _ in range(2)]
    for side in places:
        at = 0
        for index in rng.permutation(len(sizes)):
            at += int(rng.integers(1, 9)) * kind.step
            side[index] = at
            at += sizes[index]
    return list(zip(*places, sizes, strict=True))


def first_difference(found: Tensor, wanted: Tensor) -> str | None:
    """Says where two byte tensors differ first, if they do."""
    found = found.cpu()
    if torch.equal(found, wanted):
        return None
    wrong = (found != wanted).nonzero().flatten()
    at = int(wrong[0])
    return f"{len(wrong)} of {len(wanted)} bytes differ, the first at {at}: {int(found[at])} for {int(wanted[at])}"


def counted(copies: _native.CudaCopies) -> dict[tuple[str, str], int]:
    """Returns the batches that were copied, by direction and path."""
    return {(direction, path): batches for direction, path, batches, _, _ in copies.describe()["counts"]}
