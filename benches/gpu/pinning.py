"""Part `pinning`: time to pin and to unpin host memory, beside `cudaHostRegister` on such memory, in turns."""

import statistics
import time
from typing import Any

import torch
from aibrix_connector import _native

from benches.gpu.machine import Machine, Tensor, on_host
from benches.gpu.report import Options, Report

GIB = 1 << 30
MEASURE_S = 10.0
"""No further turn begins after so long: some systems take seconds for a GiB."""


def run(machine: Machine, report: Report, options: Options) -> None:
    """Memory that has been written before, and memory that has not: then pinning has to find pages as well."""
    count = 1 << 20 if options.fake else GIB // 4 if options.quick else GIB
    copies = machine.copies("auto", [])
    rows: list[dict[str, Any]] = []
    for touched in (True, False):
        ours: list[tuple[float, float]] = []
        plain: list[tuple[float, float]] = []
        until = time.monotonic() + MEASURE_S
        for turn in range(min(3, options.repeats)):
            if turn and time.monotonic() > until:
                break
            ours.append(pin(copies, fresh(count, touched)))
            if not machine.is_fake:
                plain.append(pin_by_runtime(fresh(count, touched)))
        row: dict[str, Any] = {"bytes": count, "touched": touched, "turns": len(ours), **per_gib("ours", ours, count)}
        if plain:
            row |= per_gib("cudaHostRegister", plain, count)
        rows.append(row)
        report.note("pinning", rows)


def fresh(count: int, touched: bool) -> Tensor:
    """Memory that nobody has had."""
    memory = on_host(count)
    if touched:
        memory.fill_(1)
    return memory


def pin(copies: _native.CudaCopies, memory: Tensor) -> tuple[float, float]:
    """Seconds to pin and to unpin."""
    began = time.perf_counter()
    copies.register(memory.data_ptr(), len(memory))
    pinned = time.perf_counter()
    copies.unregister(memory.data_ptr())
    return pinned - began, time.perf_counter() - pinned


def pin_by_runtime(memory: Tensor) -> tuple[float, float]:
    """The same by CUDA's runtime, through torch."""
    runtime = torch.cuda.cudart()
    began = time.perf_counter()
    status = int(runtime.cudaHostRegister(memory.data_ptr(), len(memory), 0))
    pinned = time.perf_counter()
    assert status == 0, f"cudaHostRegister returned {status}"
    runtime.cudaHostUnregister(memory.data_ptr())
    return pinned - began, time.perf_counter() - pinned


def per_gib(name: str, times: list[tuple[float, float]], count: int) -> dict[str, float]:
    """Medians, for a GiB."""
    pins, unpins = zip(*times, strict=True)
    return {
        f"{name}_pin_s_per_gib": statistics.median(pins) * GIB / count,
        f"{name}_unpin_s_per_gib": statistics.median(unpins) * GIB / count,
    }
