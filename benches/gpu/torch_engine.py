"""A small engine: paged KV on the device, matrix products as layers, and the connector's two native halves.

It does what vLLM and the connector's Python do around `_native.Planner` and `_native.Store`, and nothing else of
either. What is "computed" of a prompt are random bytes, so that a block that was not loaded, or too late, cannot look
right. Before each step the blocks that it loads are overwritten.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from aibrix_connector import _native
from aibrix_connector.kv_layout import LayerPages, page_runs

from benches.gpu.machine import Machine, Tensor

PATIENCE_S = 20.0
"""Far longer than anything here takes."""


@dataclass(frozen=True)
class Model:
    """Sizes of the KV cache, and of the products that stand for the layers' work."""

    layers: int
    heads: int
    block_tokens: int
    content: int
    """Values of one head and token, keys and values together, of two bytes each."""
    width: int
    """Of the matrices."""
    blocks: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one layer of one block."""
        return self.heads * self.block_tokens * self.content * 2

    @property
    def block_bytes(self) -> int:
        """Bytes of all layers of one block."""
        return self.page_bytes * self.layers


class PagedCache:
    """KV memory in one of vLLM's layouts: its letters are the dimensions from the outermost to the innermost."""

    def __init__(self, machine: Machine, model: Model, layout: str) -> None:
        sizes = {
            "L": model.layers,
            "B": model.blocks,
            "H": model.heads,
            "N": model.block_tokens,
            "C": model.content,
        }
        shape = [sizes[letter] for letter in layout]
        self.memory = machine.on_device(int(np.prod(shape)) * 2)
        # Integers, since they are compared: a bfloat16 that is no number does not equal itself.
        self.all = self.memory.view(torch.int16).view(shape).permute([layout.index(letter) for letter in "LBHNC"])
        self.views: list[Tensor] = list(self.all.unbind(0))

    def native_layers(self) -> list[tuple[str, int, int, int, int, int, int, int]]:
        """Returns where pages are, derived from shapes and strides as the connector does."""
        layers = []
        for index, view in enumerate(self.views):
            runs = page_runs((1, *view.shape[1:]), view.stride(), view.element_size())
            assert runs is not None, "none of vLLM's layouts has pages that are no equally spaced runs"
            stride = view.stride()[0] * view.element_size()
            pages = LayerPages(f"layers.{index}", 0, view.data_ptr(), stride, len(view), *runs)
            layers.append(pages.native())
        return layers


@dataclass
class Step:
    """What the layers do in one step."""

    loads: list[int] = field(default_factory=list)
    """Blocks that each layer reads, which were loaded for it."""
    stores: list[int] = field(default_factory=list)
    """Blocks that each layer writes..."""
    values: Tensor | None = None
    """...and what: ``[layers, blocks, heads, tokens, content]``, on the device."""
    products: int = 1
    """Matrix products of each layer."""
    busy_s: float = 0.0
    """Keep the stream busy for so long before each layer."""


class TorchEngine:
    """Scheduler and worker of one rank."""

    def __init__(
        self,
        machine: Machine,
        model: Model,
        layout: str = "LBHNC",
        *,
        capacity_bytes: int,
        copy_path: str = "auto",
        load_mode: str = "layerwise",
        drill: str | None = None,
        layers_ahead: int = 8,
    ) -> None:
        self.machine, self.model = machine, model
        self.cache = PagedCache(machine, model, layout)
        self.cache.memory.zero_()
        machine.synchronize()
        namespace = _native.fingerprint("namespace", [("benchmark", layout)])
        drills = [name for name in ("fake_cuda" if machine.is_fake else None, drill) if name]
        self.planner = _native.Planner(
            namespace=namespace,
            groups=[("full", model.block_tokens, 0)],
            slot_blocks=1,
            hash_tokens=model.block_tokens,
            ranks=1,
            load_mode=load_mode,
        )
        self.store = _native.Store(
            rank=0,
            ranks=1,
            leader=0,
            copies=1,
            layers=self.cache.native_layers(),
            slot_blocks=1,
            capacity_bytes=capacity_bytes,
            namespace=namespace,
            shard=namespace,
            slab_dir=None,
            engine_id="benchmark",
            owner_pid=0,
            copy_threads=0,
            copy_cpus=[],
            layers_ahead=layers_ahead,
            verify_l1=False,
            drill=",".join(drills) or None,
            copy_path=copy_path,
            **machine.store_options([self.cache.memory]),
        )
        half = torch.bfloat16 if not machine.is_fake else torch.float32
        self._weights = torch.randn(model.width, model.width, dtype=half, device=machine.device) / model.width**0.5
        self._state = torch.randn(model.width, model.width, dtype=half, device=machine.device)
        self._next_state = torch.empty_like(self._state)
        self.seen = torch.empty(0, dtype=torch.int16)
        self.load_errors: list[int] = []
        self._received: set[str] = set()
        self._indexes: dict[tuple[int, ...], Tensor] = {}
        self._requests = 0
        self._until(lambda: not self.device()["is_pinning"], "the memory is pinned")
        self.settle()

    def close(self) -> None:
        """Ends copies and gives memory back."""
        self.store.close()

    def device(self) -> dict[str, Any]:
        """Returns what the store's device says of itself."""
        device = self.store.device()
        assert device is not None, "the store was given a device"
        return device

    # The engine's side of requests.

    def compute(self, prompt: str, table: list[int], values: Tensor, **step: Any) -> None:
        """Computes a prompt into the blocks of its table, offloads it, and waits until it is stored."""
        self.start_to_compute(prompt, table)
        self.step(Step(stores=table, values=values, **step), tokens=len(table) * self.model.block_tokens)
        self.settle()

    def start_to_compute(self, prompt: str, table: list[int]) -> None:
        """Admits a request without a hit and plans its offload for the next step."""
        request = self._admit(prompt, len(table))
        assert self._lookup(request, len(table)) == (0, False), "nothing of this prompt was stored before"
        self.planner.commit_load(request, 0, [])
        tokens = len(table) * self.model.block_tokens
        self.planner.offload(request, tokens, [table])
        self.planner.finish(request)

    def start_to_load(self, prompt: str, table: list[int]) -> str:
        """Admits a request whose blocks are all stored, and plans their load for the next step."""
        # One block more than can be loaded: a request always computes its last tokens.
        request = self._admit(prompt, len(table) + 1)
        tokens, _ = self._lookup(request, len(table) + 1)
        wanted = len(table) * self.model.block_tokens
        assert tokens == wanted, f"{tokens} tokens of {wanted} can be loaded"
        self.planner.commit_load(request, wanted, [[*table, 0]])
        return request

    def _admit(self, prompt: str, count: int) -> str:
        self._requests += 1
        request = f"{prompt}-{self._requests}"
        self.planner.add_request(request, prompt_tokens=count * self.model.block_tokens)
        names = (f"{prompt} {index}".encode() for index in range(count))
        self.planner.extend_hashes(request, [hashlib.sha256(name).digest() for name in names])
        return request

    def _lookup(self, request: str, count: int) -> tuple[int, bool]:
        found: tuple[int | None, bool] = (None, False)

        def answered() -> bool:
            nonlocal found
            found = self.planner.lookup(request, 0, count * self.model.block_tokens, time.monotonic())
            return found[0] is not None

        self._until(answered, "the planner answers")
        assert found[0] is not None
        return found[0], found[1]

    # One step.

    def step(self, step: Step, tokens: int = 1, replay: Callable[[], None] | None = None) -> None:
        """Runs a step's hooks and layers in vLLM's order; with `replay`, the layers are a graph of the whole step."""
        self.begin(tokens)
        if replay is not None:
            self.store.wait_layer(self.model.layers - 1, self._stream())
            replay()
        else:
            self.forward(step, hooks=True)
        self.end()

    def begin(self, tokens: int = 1) -> None:
        """Gives the step's plan to the store, and starts its loads."""
        plan = self.planner.take_plan(tokens, time.monotonic())
        if plan is not None:
            self.store.begin_step(plan, self._stream())
        self.store.start_loads()

    def end(self) -> None:
        """The step is over for the engine; copies may go on."""
        self.store.end_step(False, False, self._stream())
        self.take_ends()

    def take_ends(self) -> None:
        """Hands on what has ended."""
        received, failed = self.store.take_received()
        self._received.update(received)
        self.load_errors += self.store.take_load_errors()
        assert not failed, f"loads between steps have failed: {failed}"
        report = self.store.take_report()
        if report is not None:
            self.planner.absorb(report)

    def forward(self, step: Step, *, hooks: bool) -> None:
        """The layers: each reads its loaded blocks, multiplies, and writes its new blocks."""
        loads, stores = self.index(step.loads), self.index(step.stores)
        for layer, view in enumerate(self.cache.views):
            if step.busy_s:
                self.machine.keep_busy(step.busy_s)
            if hooks:
                self.store.wait_layer(layer, self._stream())
            if step.loads:
                self.seen[layer].copy_(view.index_select(0, loads))
            self.multiply(step.products)
            if step.values is not None:
                view.index_copy_(0, stores, step.values[layer])
            if hooks:
                self.store.store_layer(layer, self._stream())

    def multiply(self, products: int) -> None:
        """So many matrix products, one after the other."""
        for _ in range(products):
            torch.matmul(self._state, self._weights, out=self._next_state)
            self._state, self._next_state = self._next_state, self._state

    def make_room_for_seen(self, count: int) -> None:
        """What layers read of loaded blocks goes there."""
        model = self.model
        shape = (model.layers, count, model.heads, model.block_tokens, model.content)
        self.seen = torch.zeros(shape, dtype=torch.int16, device=self.machine.device)

    def index(self, blocks: list[int]) -> Tensor:
        """Returns a block table on the device."""
        key = tuple(blocks)
        if key not in self._indexes:
            self._indexes[key] = torch.tensor(blocks, dtype=torch.int64, device=self.machine.device)
        return self._indexes[key]

    def settle(self) -> None:
        """Empty steps until nothing is pending."""

        def pending() -> bool:
            if self.planner.has_pending_work() or not self.store.is_settled():
                self.begin()
                self.end()
                return True
            return False

        self._until(lambda: not pending(), "copies have ended")

    def wait_received(self, request: str) -> None:
        """Empty steps until a load between steps has ended."""

        def received() -> bool:
            self.begin()
            self.end()
            return request in self._received

        self._until(received, "the load between steps has ended")

    def _stream(self) -> int:
        return self.machine.stream_of(self.store)

    @staticmethod
    def _until(holds: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > until:
                raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
            time.sleep(0.0002)
