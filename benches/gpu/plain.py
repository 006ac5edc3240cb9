"""The baseline: what torch's own `copy_` of one large pinned buffer reaches, in each direction and in both."""

import statistics
from dataclasses import dataclass
from typing import Any

import torch

from benches.gpu.machine import Machine
from benches.gpu.report import Options


@dataclass
class Plain:
    """A large buffer on each side, twice: one `cudaMemcpyAsync` a copy."""

    machine: Machine
    count: int

    def __post_init__(self) -> None:
        real = not self.machine.is_fake
        self._host = [torch.zeros(self.count, dtype=torch.uint8, pin_memory=real) for _ in range(2)]
        self._device = [self.machine.on_device(self.count) for _ in range(2)]

    def gb_s(self, direction: str, repeats: int) -> list[float]:
        """Returns rates of single large copies, by events around each."""
        target, source = (self._device, self._host) if direction == "load" else (self._host, self._device)
        rates = []
        for turn in range(repeats + 1):
            began = self.machine.mark()
            target[0].copy_(source[0], non_blocking=True)
            seconds = self.machine.seconds(began, self.machine.mark())
            if turn:  # the first one warms up
                rates.append(self.count / seconds / 1e9)
        return rates

    def both_gb_s(self, repeats: int) -> list[float]:
        """Returns rates of both directions at once, bytes of both over the time until the later one has ended."""
        return [self.count * 2 / self._both() / 1e9 for _ in range(repeats + 1)][1:]

    def _both(self) -> float:
        machine = self.machine
        if machine.is_fake:
            began = machine.mark()
            for which in range(2):
                self._copy_one_way(which)
            return machine.seconds(began, machine.mark())
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        machine.keep_busy(0.0005)  # until both have been called for
        began = machine.mark()
        for which, stream in enumerate(streams):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._copy_one_way(which)
        for stream in streams:
            torch.cuda.current_stream().wait_stream(stream)
        return machine.seconds(began, machine.mark())

    def _copy_one_way(self, which: int) -> None:
        if which == 0:
            self._device[0].copy_(self._host[0], non_blocking=True)
        else:
            self._host[1].copy_(self._device[1], non_blocking=True)


def peaks(machine: Machine, options: Options) -> "Peaks":
    """Measures the baseline: the best and the median of several copies of 256 MiB."""
    return Peaks(Plain(machine, 64 << 10 if machine.is_fake else 256 << 20), options)


class Peaks:
    """Rates of plain copies, measured again whenever asked, so that they belong to the same moments as ours."""

    def __init__(self, plain: Plain, options: Options) -> None:
        self._plain, self._repeats = plain, max(3, options.repeats)
        self.rates: dict[str, list[float]] = {"load": [], "offload": [], "both": []}
        self.measure()

    def measure(self) -> None:
        """Measures once more."""
        for direction in ("load", "offload"):
            self.rates[direction] += self._plain.gb_s(direction, self._repeats)
        self.rates["both"] += self._plain.both_gb_s(self._repeats)

    def best(self, direction: str) -> float:
        """The fastest copy so far, GB/s: what ratios are to."""
        return max(self.rates[direction])

    def json(self) -> dict[str, Any]:
        """Best, median and spread of each direction, GB/s."""
        return {
            direction: {
                "best": max(rates),
                "median": statistics.median(rates),
                "low": min(rates),
                "samples": len(rates),
            }
            for direction, rates in self.rates.items()
        }
