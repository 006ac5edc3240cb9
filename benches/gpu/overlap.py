"""Part `overlap`: how much of a layer-wise load shows, when computing takes as long.

Each turn measures the load alone, the layers alone, both together layer by layer, and the whole load before the layers,
as before a replayed graph. By CUDA events: from before the step's plan is given to the store until the last layer.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benches.gpu.machine import Machine
from benches.gpu.report import Options, Report
from benches.gpu.torch_engine import Model, Step, TorchEngine


@dataclass(frozen=True)
class Case:
    """A model and how much of it is loaded."""

    name: str
    model: Model
    blocks: int


def cases(options: Options) -> list[Case]:
    """Pages as those of Llama 3 8B on one rank, and on eight."""
    if options.fake:
        return [Case("1 KiB pages", Model(layers=3, heads=1, block_tokens=16, content=32, width=64, blocks=20), 8)]
    whole = Model(layers=32, heads=8, block_tokens=16, content=256, width=2048, blocks=516)
    eighth = Model(layers=32, heads=1, block_tokens=16, content=256, width=2048, blocks=2052)
    return [Case("64 KiB pages", whole, 256), Case("8 KiB pages", eighth, 1024)]


def run(machine: Machine, report: Report, options: Options) -> None:
    """Every case."""
    rows = []
    for case in cases(options):
        rows.append(Overlap(machine, case).measure(options))
        report.note("overlap", rows)


class Overlap:
    """An engine with a prompt that is stored, and its load."""

    def __init__(self, machine: Machine, case: Case) -> None:
        self._machine, self._case = machine, case
        model = case.model
        self._engine = TorchEngine(machine, model, capacity_bytes=(case.blocks + 64) * model.block_bytes)
        self._tables = [list(range(1 + side * case.blocks, 1 + (side + 1) * case.blocks)) for side in range(2)]
        rng = np.random.default_rng(5)
        for table in self._tables:
            rng.shuffle(table)
        shape = (model.layers, case.blocks, model.heads, model.block_tokens, model.content)
        values = torch.randint(-(1 << 15), 1 << 15, shape, dtype=torch.int16, device=machine.device)
        self._engine.compute("p", self._tables[0], values)
        self._products = 1

    def measure(self, options: Options) -> dict[str, Any]:
        """Turns of all four, and their ratios."""
        self._balance()
        turns: dict[str, list[float]] = {"load": [], "compute": [], "layerwise": [], "before": []}
        for turn in range(options.repeats + 2):
            times = {"load": self._load(), "compute": self._compute(), "layerwise": self._layerwise()}
            times["before"] = self._before()
            if turn >= 2:
                for name, seconds in times.items():
                    turns[name].append(seconds)
        longest = [max(load, compute) for load, compute in zip(turns["load"], turns["compute"], strict=True)]
        layerwise = [ours / best for ours, best in zip(turns["layerwise"], longest, strict=True)]
        before = [ours / best for ours, best in zip(turns["before"], longest, strict=True)]
        device = self._engine.device()
        loaded = self._case.blocks * self._case.model.block_bytes
        self._engine.close()
        return {
            "case": self._case.name,
            "loaded_bytes": loaded,
            "products": self._products,
            **{f"{name}_ms": statistics.median(values) * 1e3 for name, values in turns.items()},
            "load_gb_s": loaded / statistics.median(turns["load"]) / 1e9,
            "layerwise_to_longest": statistics.median(layerwise),
            "layerwise_low": min(layerwise),
            "layerwise_high": max(layerwise),
            "before_to_longest": statistics.median(before),
            "counts": device["counts"],
            "pinned_gib": device["pinned_bytes"] / (1 << 30),
            "pinning_s": device["pinning_s"],
        }

    def _balance(self) -> None:
        """Finds how many products make the layers take as long as the load."""
        self._load(), self._compute()
        load = statistics.median(self._load() for _ in range(3))
        for _ in range(3):
            compute = statistics.median(self._compute() for _ in range(3))
            self._products = max(1, math.ceil(self._products * load / compute - 0.5))

    def _load(self) -> float:
        request = self._start()
        began = self._machine.mark()
        self._engine.begin()
        for layer in range(self._case.model.layers):
            self._engine.store.wait_layer(layer, self._machine.stream_of(self._engine.store))
        return self._end(began, request)

    def _layerwise(self) -> float:
        request = self._start()
        began = self._machine.mark()
        self._engine.begin()
        self._engine.forward(Step(products=self._products), hooks=True)
        return self._end(began, request)

    def _before(self) -> float:
        request = self._start()
        began = self._machine.mark()
        self._engine.begin()
        last = self._case.model.layers - 1
        self._engine.store.wait_layer(last, self._machine.stream_of(self._engine.store))
        self._engine.forward(Step(products=self._products), hooks=False)
        return self._end(began, request)

    def _compute(self) -> float:
        self._machine.synchronize()
        began = self._machine.mark()
        self._engine.forward(Step(products=self._products), hooks=False)
        return self._machine.seconds(began, self._machine.mark())

    def _start(self) -> str:
        """Plans a load into the other blocks."""
        request = self._engine.start_to_load("p", self._tables[1])
        self._machine.synchronize()
        return request

    def _end(self, began: Any, request: str) -> float:
        seconds = self._machine.seconds(began, self._machine.mark())
        self._engine.end()
        self._engine.planner.finish(request)
        self._engine.settle()
        assert not self._engine.load_errors, "loads succeed"
        return seconds
