"""Part `interference`: what computing loses while copies go on all the time.

Copies wait behind a kernel until all of them are submitted, enough to outlast the work; then both run. The work is
timed by CUDA events, alone and beside copies in turns. That copies outlasted it is checked by an event behind them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benches.gpu.bytes_of_copies import WAIT_S, Piece
from benches.gpu.machine import Machine, on_host
from benches.gpu.report import Options, Report

KIB, MIB = 1 << 10, 1 << 20
COVERED = 0.7
"""The work takes this part of the copies' time."""


def run(machine: Machine, report: Report, options: Options) -> None:
    """Prefill-like and decode-like work beside offloads and loads, by several paths."""
    works = {"matrix products": Products(machine, options), "decode steps in a graph": Decode(machine, options)}
    sizes = [KIB] if options.fake else [64 * KIB, 16 * KIB]
    rows = []
    for path in ("auto",) if options.fake else ("auto", "dma_batch", "kernel"):
        copies = Copies(machine, path, options)
        for direction in ("offload", "load"):
            for size in sizes:
                for name, work in works.items():
                    row = {"work": name, "path": path, "direction": direction, "piece_bytes": size}
                    rows.append({**row, **beside(machine, copies, work, direction, size, options)})
                    report.note("interference", rows)
        copies.close()


def beside(
    machine: Machine, copies: "Copies", work: "Work", direction: str, size: int, options: Options
) -> dict[str, Any]:
    """Times work alone and beside copies."""
    window = statistics.median(copies.alone(direction, size) for _ in range(3))
    work.run(1)
    once = statistics.median(timed(machine, lambda: work.run(1)) for _ in range(3))
    times = max(1, int(COVERED * window / once))
    ratios, covered, undisturbed = [], True, []
    for turn in range(options.repeats + 1):
        alone = timed(machine, lambda: work.run(times))
        seconds, copied = copies.beside(direction, size, lambda: work.run(times))
        if turn:
            ratios.append(alone / seconds)
            undisturbed.append(alone)
            covered &= copied >= seconds
    return {
        "undisturbed_ms": statistics.median(undisturbed) * 1e3,
        "copies_ms": window * 1e3,
        "copies_gb_s": copies.bytes / window / 1e9,
        "speed": statistics.median(ratios),
        "speed_low": min(ratios),
        "speed_high": max(ratios),
        "copies_outlasted_work": covered,
    }


def timed(machine: Machine, work: Callable[[], None]) -> float:
    """Seconds of the work, submitted while the stream is kept busy."""
    machine.synchronize()
    machine.keep_busy(0.005)
    began = machine.mark()
    work()
    return machine.seconds(began, machine.mark())


class Work:
    """Something that computes."""

    def run(self, times: int) -> None:
        """Does it so many times on the current stream."""
        raise NotImplementedError


class Products(Work):
    """Large matrix products: bound by arithmetic."""

    def __init__(self, machine: Machine, options: Options) -> None:
        width, dtype = (64, torch.float32) if options.fake else (4096, torch.bfloat16)
        self._left, self._right = (torch.randn(width, width, dtype=dtype, device=machine.device) for _ in range(2))
        self._out = torch.empty_like(self._left)

    def run(self, times: int) -> None:
        for _ in range(times):
            torch.matmul(self._left, self._right, out=self._out)


class Decode(Work):
    """Layers of a decode step of 32 requests, captured as one graph: bound by the device's memory."""

    def __init__(self, machine: Machine, options: Options) -> None:
        width, wide, layers = (32, 64, 2) if options.fake else (4096, 14336, 8)
        dtype = torch.float32 if options.fake else torch.bfloat16

        def weights(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, dtype=dtype, device=machine.device) / rows**0.5

        self._layers = [[weights(width, 3 * width), weights(width, wide), weights(wide, width)] for _ in range(layers)]
        self._state = torch.randn(32, width, dtype=dtype, device=machine.device)
        self._replay = machine.capture(self._step)

    def _step(self) -> None:
        state = self._state
        for mixed, up, down in self._layers:
            attended = (state @ mixed)[:, : state.shape[1]]
            state = torch.nn.functional.silu(attended @ up) @ down

    def run(self, times: int) -> None:
        for _ in range(times):
            self._replay()


class Copies:
    """A copy engine with enough to do."""

    def __init__(self, machine: Machine, path: str, options: Options) -> None:
        self._machine = machine
        self.bytes = arena = 64 * KIB if options.fake else 1024 * MIB
        self._host, self._device = on_host(arena), machine.on_device(arena)
        self._host.zero_()
        self.copies = machine.copies(path, [self._device])
        self.copies.register(self._host.data_ptr(), arena)
        self._rng = np.random.default_rng(9)
        self._prepared: dict[tuple[str, int], list[Piece]] = {}

    def close(self) -> None:
        """Gives pinned memory back."""
        self.copies.unregister(self._host.data_ptr())

    def alone(self, direction: str, size: int) -> float:
        """Seconds of the copies by themselves."""
        return self.beside(direction, size, lambda: None)[1]

    def beside(self, direction: str, size: int, work: Callable[[], None]) -> tuple[float, float]:
        """Seconds of the work and of the copies, which begin together."""
        machine, copies = self._machine, self.copies
        # One batch: what an engine takes behind others is bounded.
        pieces = self._pieces(direction, size)
        machine.synchronize()
        stream = machine.stream_of(copies)
        # Long enough for all of them to be submitted meanwhile.
        machine.keep_busy(0.005 + 2 * self._submit_s)
        submitting = time.perf_counter()
        ticket = copies.submit(direction, pieces, after=stream)
        self._submit_s = min(0.1, time.perf_counter() - submitting)
        began = machine.mark()
        work()
        ended = machine.mark()
        copies.order_after(ticket, stream)
        copied = machine.mark()
        seconds = machine.seconds(began, ended), machine.seconds(began, copied)
        assert copies.wait(ticket, WAIT_S), "copies end"
        return seconds

    _submit_s = 0.02

    def _pieces(self, direction: str, size: int) -> list[Piece]:
        """All of the memory, in another order on each side."""
        key = direction, size
        if key not in self._prepared:
            count = len(self._host) // size
            host, device = (
                (start + self._rng.permutation(count) * size).tolist()
                for start in (self._host.data_ptr(), self._device.data_ptr())
            )
            ends = (host, device) if direction == "load" else (device, host)
            self._prepared[key] = list(zip(*ends, [size] * count, strict=True))
        return self._prepared[key]
