"""Part `engine`: the connector's native halves in a small torch engine give each layer the bytes that were computed.

A prompt is computed and offloaded, and later loaded into other blocks that hold poison until then. Each layer keeps
what it read of them at its moment, and at the end all of the KV memory is compared, also what nobody was to touch.
"""

from collections.abc import Callable

import numpy as np
import torch

from benches.gpu.bytes_of_copies import DIRECTIONS, PATHS, first_difference
from benches.gpu.machine import Machine, Tensor
from benches.gpu.report import Options, Report
from benches.gpu.torch_engine import Model, Step, TorchEngine

LAYOUTS = {"LBHNC": "layers first", "BLHNC": "blocks first", "BHLNC": "heads before layers"}
"""Of vLLM's six: each page in one run, near its block's others or not, and pages in several short runs."""

BUSY_S = 0.0005


def run(machine: Machine, report: Report, options: Options) -> None:
    """All layouts with the path that is chosen, and all paths with one layout."""
    # Opening a device takes a second where it is a fake one.
    paths = PATHS[-1:] if options.fake else PATHS
    variants = [(layout, "auto") for layout in LAYOUTS] + [("LBHNC", path) for path in paths]
    for layout, path in variants:
        name = f"{LAYOUTS[layout]}, {path}"
        engine = Compared(machine, layout, path, options)
        if path not in ("auto", *engine.engine.device()["paths"]):
            report.skip(name, "; ".join(engine.engine.device()["remarks"]))
        else:
            for what, scenario in engine.scenarios().items():
                problems = scenario()
                report.check(f"{name}: {what}", not problems, "; ".join(problems))
            problems = engine.faults()
            report.check(f"{name}: no load, offload or call has failed", not problems, "; ".join(problems))
            report.note(f"counts, {name}", engine.engine.device()["counts"])
        engine.close()
    # The checks above would be worth nothing if they could not see a load that nobody waits for.
    engine = Compared(machine, "LBHNC", "auto", options, without_waits(options))
    problems = engine.load_by_layer()
    report.check("control: without waits, layers read other bytes", bool(problems), "")
    engine.close()


class Compared:
    """An engine, and what its memory must hold."""

    def __init__(self, machine: Machine, layout: str, path: str, options: Options, drill: str | None = None) -> None:
        self._options = options
        if options.sabotage == "wait":
            drill = without_waits(options)
        model = (
            Model(layers=3, heads=2, block_tokens=16, content=32, width=32, blocks=48)
            if options.fake
            else Model(layers=16, heads=8, block_tokens=16, content=256, width=2048, blocks=128)
        )
        self._machine, self._layout, self._path, self._drill = machine, layout, path, drill
        self._rng = np.random.default_rng(11)
        self._count = model.blocks // 8
        self.engine = self._open(model, "layerwise")
        # The CPU's copy of all KV memory, which a fake device has on the CPU itself.
        self._wanted = self.engine.cache.all.cpu().clone()
        self._prompts: dict[str, Tensor] = {}
        self._upper = False

    def close(self) -> None:
        """Ends the engine."""
        self.engine.close()

    def _open(self, model: Model, load_mode: str) -> TorchEngine:
        engine = TorchEngine(
            self._machine,
            model,
            self._layout,
            capacity_bytes=2 * model.blocks * model.block_bytes,
            copy_path=self._path,
            load_mode=load_mode,
            drill=self._drill,
        )
        engine.make_room_for_seen(self._count)
        return engine

    def scenarios(self) -> dict[str, Callable[[], list[str]]]:
        """What is looked at; each returns what is wrong."""
        scenarios = {
            "loads by layer": self.load_by_layer,
            "loads by layer, on a stream of its own, while other blocks are offloaded": self.load_and_offload,
            "a whole load before a replayed graph, and offloads of what it wrote": self.graph,
        }
        if self._path == "auto":
            scenarios["loads between steps"] = self.load_between_steps
        return scenarios

    def load_by_layer(self) -> list[str]:
        """Offload, then load into blocks that hold poison."""
        self._compute("a")
        return self._load("a", lambda step: self.engine.step(step))

    def load_and_offload(self) -> list[str]:
        """In one step one prompt is loaded and another computed and offloaded; then that one is loaded too."""
        self._compute("b")
        with self._machine.side_stream():
            table, values = self._new_prompt("c")
            self.engine.start_to_compute("c", table)

            def both(step: Step) -> None:
                step.stores, step.values = table, values
                self.engine.step(step)

            problems = self._load("b", both)
            return problems + self._load("c", lambda step: self.engine.step(step))

    def graph(self) -> list[str]:
        """Layers without hooks: a graph reads the loaded blocks and writes new ones."""
        self._compute("d")
        table, values = self._new_prompt("e")
        target = self._free_blocks()
        step = Step(loads=target, stores=table, values=values)
        self.engine.index(target), self.engine.index(table)
        replay = self._machine.capture(lambda: self.engine.forward(step, hooks=False))
        # The layers have run once before they were captured, and their bytes would pass for those of the replay.
        self._poison(table)
        self._wanted[:, table] = values.cpu()
        self.engine.start_to_compute("e", table)
        problems = self._load("d", lambda _: self.engine.step(step, replay=replay), target)
        return problems + self._load("e", lambda again: self.engine.step(again))

    def load_between_steps(self) -> list[str]:
        """A load that no step waits for: the request is not scheduled before it has ended."""
        faults = self.faults()
        self.engine.close()
        self.engine = self._open(self.engine.model, "async")
        self._wanted = self.engine.cache.all.cpu().clone()
        self._prompts.clear()
        self._compute("f")
        target = self._free_blocks()
        self._poison(target)
        request = self.engine.start_to_load("f", target)
        self.engine.wait_received(request)
        self._wanted[:, target] = self._prompts["f"]
        self.engine.planner.finish(request)
        return faults + self._compare("after a load between steps")

    def faults(self) -> list[str]:
        """Returns what went wrong although bytes are right."""
        stats, device = self.engine.store.stats(), self.engine.device()
        found = [name for name in ("failed_load_jobs", "failed_offloads") if stats[name]]
        found += [f"blocks not loaded: {self.engine.load_errors}"] if self.engine.load_errors else []
        found += [f"pinning: {device['pinning_failure']}"] if device["pinning_failure"] else []
        found += ["loads from memory that is not pinned"] if device["pageable_batches"] else []
        batches = {(direction, name): count for direction, name, count, _, _ in device["counts"]}
        for direction in () if self._path == "auto" else DIRECTIONS:
            # Kernels leave what exceeds their tables to another path.
            others = sum(count for (way, name), count in batches.items() if way == direction and name != self._path)
            if others >= batches.get((direction, self._path), 0):
                found.append(f"{direction} by others: {device['counts']}, {device['remarks']}")
        return found + self.engine.store.violations()[:3]

    def _compute(self, prompt: str) -> None:
        table, values = self._new_prompt(prompt)
        self.engine.compute(prompt, table, values, busy_s=BUSY_S)

    def _new_prompt(self, prompt: str) -> tuple[list[int], Tensor]:
        model = self.engine.model
        table = self._free_blocks()
        shape = (model.layers, len(table), model.heads, model.block_tokens, model.content)
        values = torch.from_numpy(self._rng.integers(-(1 << 15), 1 << 15, shape, dtype=np.int16))
        self._prompts[prompt] = values
        self._wanted[:, table] = values
        return table, values.to(self._machine.device)

    def _free_blocks(self) -> list[int]:
        """Blocks in no order; some held something before. None of them is the last time's."""
        half = self.engine.model.blocks // 2
        self._upper = not self._upper
        # Block 0 is the engine's "no block".
        first = half if self._upper else 1
        return [first + int(block) for block in self._rng.permutation(half - 1)[: self._count]]

    def _poison(self, target: list[int]) -> None:
        """Writes what no prompt holds into blocks of the device, behind slow work of the stream."""
        poison = torch.full_like(self._wanted[:, target], 0x5A5A)
        self._wanted[:, target] = poison
        on_device = poison.to(self._machine.device)
        self._machine.keep_busy(BUSY_S)
        for layer, view in enumerate(self.engine.cache.views):
            view.index_copy_(0, self.engine.index(target), on_device[layer])

    def _load(self, prompt: str, act: Callable[[Step], None], target: list[int] | None = None) -> list[str]:
        target = target or self._free_blocks()
        self._poison(target)
        self.engine.seen.zero_()
        request = self.engine.start_to_load(prompt, target)
        act(Step(loads=target, busy_s=BUSY_S))
        self._machine.synchronize()
        values = self._prompts[prompt]
        self._wanted[:, target] = values
        if self._options.sabotage == "byte":
            self.engine.seen[0, 0, 0, 0, 0] ^= 1
        problems = []
        for layer, seen in enumerate(self.engine.seen):
            if difference := first_difference(as_bytes(seen), as_bytes(values[layer])):
                problems.append(f"layer {layer} read other bytes of {prompt}: {difference}")
                break
        self.engine.planner.finish(request)
        self.engine.settle()
        return problems + self._compare(f"after the load of {prompt}")

    def _compare(self, when: str) -> list[str]:
        self._machine.synchronize()
        difference = first_difference(as_bytes(self.engine.cache.all), as_bytes(self._wanted))
        return [f"KV memory {when}: {difference}"] if difference else []


def without_waits(options: Options) -> str:
    """Returns a drill: nobody waits for loads, and these take long enough for that to show, about a second on a GPU."""
    return f"skip_waits,copy_bytes_per_s={1_000_000 if options.fake else 20_000_000}"


def as_bytes(tensor: Tensor) -> Tensor:
    """Returns the tensor's bytes in its logical order."""
    return tensor.contiguous().view(torch.uint8).flatten()
