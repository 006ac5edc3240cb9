"""The connector's worker side with tensors on a CUDA device: what the native side is told, and in which order.

There is no device here. The tensors only say that they are on one, torch's stream is a number, and the store is the
real one for host memory behind a note-taker, so that loads and offloads still move bytes.
"""

from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from aibrix_connector import _native, problem_watch
from aibrix_connector import worker as worker_module

from tests.unit.fakes import request
from tests.unit.small_engine import FULL_GRAPH, LAYERS, Engine

LAST = LAYERS - 1


class CudaTensor:
    """A tensor that says it is on a device."""

    def __init__(self, tensor: torch.Tensor, index: int = 0) -> None:
        self._tensor = tensor
        self.device = torch.device("cuda", index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def __getitem__(self, key: Any) -> torch.Tensor:
        return self._tensor[key]


class Device:
    """Torch's side of it, and notes of everything that happens."""

    def __init__(self) -> None:
        self.stream = 0x51
        self.asked = 0
        self.error: Exception | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.arguments: dict[str, Any] = {}

    def current_stream(self, index: int) -> int:
        assert index == 0
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.stream

    def synchronize(self, index: int) -> None:
        assert index == 0
        self.calls.append(("synchronize",))

    def take(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


class NotedStore:
    """The host's store, told of a device."""

    TAKE_STREAM = ("begin_step", "wait_layer", "store_layer", "end_step")
    NOTED = (*TAKE_STREAM, "start_loads", "read_block", "write_block")

    def __init__(self, noted: Device, **arguments: Any) -> None:
        device: dict[str, Any] = {
            name: arguments.pop(name) for name in ("device", "device_memory", "copy_path") if name in arguments
        }
        noted.arguments = device
        self._device = noted
        self._store = _native.Store(**arguments)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in self.NOTED:
            return method

        def call(*arguments: Any) -> Any:
            told = tuple(argument for argument in arguments if not isinstance(argument, bytes))
            self._device.calls.append((name, *told))
            return method(*(arguments[:-1] if name in self.TAKE_STREAM else arguments))

        return call


class CudaEngine(Engine):
    """An engine whose tensors are on a device."""

    def registered(self) -> dict[str, Any]:
        return {name: CudaTensor(view) for name, view in self.views.items()}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    noted = Device()
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", noted.current_stream, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", noted.synchronize)

    class Native:
        Store = staticmethod(lambda **arguments: NotedStore(noted, **arguments))
        fingerprint = staticmethod(_native.fingerprint)

    monkeypatch.setattr(worker_module, "_native", Native)
    return noted


@pytest.fixture
def engine(device: Device, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return CudaEngine(monkeypatch, copy_path="kernel")


def test_the_store_is_told_of_the_device(engine: Engine, device: Device) -> None:
    memory = [(view.data_ptr(), view.numel()) for view in engine.views.values()]
    assert device.arguments == {"device": "cuda:0", "device_memory": sorted(memory), "copy_path": "kernel"}


def test_host_memory_needs_no_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch)
    engine.compute(request("a", 80))
    engine.load(request("b", 80), 64)
    engine.settle()
    assert device.arguments["device"] is None
    assert device.asked == 0
    assert {call[-1] for call in device.calls if call[0] in NotedStore.TAKE_STREAM} == {None}


def test_the_round_trip_waits_for_what_torch_has_written(engine: Engine, device: Device) -> None:
    block = engine.kv_config.num_blocks - 2
    before = device.take()[:5]
    assert before == [
        *(("synchronize",), ("read_block", 0, block)),
        *(("synchronize",), ("write_block", 0, block)),
        ("synchronize",),
    ]


def test_each_hook_passes_the_stream_of_its_moment(
    engine: Engine, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.compute(request("a", 80))
    device.take()
    forward = engine.forward

    def on_another_stream() -> None:
        device.stream = 0x52
        forward()
        device.stream = 0x53

    monkeypatch.setattr(engine, "forward", on_another_stream)
    table = engine.load(request("b", 80), 64)
    assert device.calls[:2] == [("begin_step", 0x51), ("start_loads",)]
    hooks = [call for call in device.calls if call[0] in ("wait_layer", "store_layer")]
    assert hooks == [("wait_layer", layer, 0x52) for layer in range(LAYERS)]
    assert device.calls[-1] == ("end_step", False, False, 0x53)
    assert [engine.is_loaded(block, index) for index, block in enumerate(table)] == [True] * 4 + [False]


def test_computed_layers_are_stored_behind_their_stream(engine: Engine, device: Device) -> None:
    device.take()
    engine.compute(request("a", 80))
    stored = [call for call in device.calls if call[0] == "store_layer"]
    assert stored == [("store_layer", layer, 0x51) for layer in range(LAYERS)]


@pytest.mark.parametrize("runner", FULL_GRAPH)
def test_a_replayed_graph_waits_once_and_first(
    engine: Engine, device: Device, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    engine.compute(request("a", 80))
    device.take()
    engine.context = FULL_GRAPH[runner]

    def hooks_all_the_same() -> None:
        assert not engine.up.has_connector_metadata(), "the layers need not ask"
        for name in engine.names:
            engine.up.wait_for_layer_load(name)

    monkeypatch.setattr(engine, "forward", hooks_all_the_same)
    engine.load(request("b", 80), 64)
    waits = [("begin_step", 0x51), ("start_loads",), ("wait_layer", LAST, 0x51), ("end_step", False, False, 0x51)]
    assert [call for call in device.calls if call[0] != "store_layer"] == waits
    assert engine.errors == set()


def test_layers_without_hooks_wait_once_and_first(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CudaEngine(monkeypatch, layers_without_hooks=1)
    engine.compute(request("a", 80))
    assert not [call for call in device.take() if call[0] == "store_layer"]
    engine.load(request("b", 80), 64)
    assert [call for call in device.calls if call[0] == "wait_layer"] == [("wait_layer", LAST, 0x51)]
    assert engine.errors == set()


def test_quiet_steps_ask_for_no_stream(engine: Engine, device: Device) -> None:
    asked = request("a", 80)
    table = engine.compute(asked)
    engine.quieten()
    before = device.asked
    device.take()
    for tokens in range(5):
        engine.step({"a": (asked.num_tokens + 1 + tokens, table)})
    assert device.asked == before
    assert device.calls == []


@pytest.mark.parametrize("when", ["begin", "start", "hooks", "end"])
def test_a_device_that_fails_makes_a_miss(
    engine: Engine, device: Device, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Torch raises from then on, as it does after an error of a kernel: nothing of it reaches the engine's step."""
    engine.compute(request("a", 80))
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    forward, start = engine.forward, engine.up.start_load_kv

    def failing_start(*arguments: Any) -> None:
        device.error = broken if when == "start" else None
        start(*arguments)

    def failing_forward() -> None:
        device.error = broken if when in ("start", "hooks") else None
        forward()
        device.error = broken

    monkeypatch.setattr(engine, "forward", failing_forward)
    if when == "start":
        engine.context = FULL_GRAPH["first runner"]
        monkeypatch.setattr(engine.up, "start_load_kv", failing_start)
    if when == "begin":
        bind = engine.up.bind_connector_metadata

        def failing_bind(metadata: Any) -> None:
            device.error = broken
            bind(metadata)

        monkeypatch.setattr(engine.up, "bind_connector_metadata", failing_bind)
    table = engine.load(request("b", 80), 64)
    assert engine.errors >= set(table[:4])
    assert engine.internal_errors() >= 1
    engine.settle()
    assert engine.pool.held() == []


def test_a_rank_that_was_closed_has_not_mended_its_problems(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(problem_watch.logger, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(problem_watch.logger, "info", lambda text, *values: said.append(text % values))
    (watch,) = engine.working._watches
    found = ["the CUDA context is lost"]
    monkeypatch.setattr(watch, "_problems", lambda: list(found))
    watch.look()
    engine.working.stop()
    found.clear()
    watch.look()
    assert said == ["L1: the CUDA context is lost"]


def test_what_the_driver_says_is_said(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "CUDA unavailable: the driver is too old"

    def refuse(**arguments: Any) -> Any:
        raise ValueError(words)

    monkeypatch.setattr("aibrix_connector.worker._native.Store", refuse)
    with pytest.raises(ValueError, match="^" + words + "$"):
        CudaEngine(monkeypatch)
