"""Where the engine's tensors are, and which stream computes on them."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from aibrix_connector import engine_device
from aibrix_connector.kv_groups import UnsupportedLayoutError


def tensors(*devices: tuple[str, int | None]) -> dict[str, Any]:
    def device(kind: str, index: int | None) -> Any:
        text = kind if index is None else f"{kind}:{index}"
        return type("Device", (), {"type": kind, "index": index, "__str__": lambda _: text})()

    return {f"layers.{n}": SimpleNamespace(device=device(*place)) for n, place in enumerate(devices)}


def fake_torch(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> list[Any]:
    calls: list[Any] = []
    cuda = SimpleNamespace(
        current_stream=lambda index: SimpleNamespace(cuda_stream=1000 + index),
        current_device=lambda: 5,
        synchronize=lambda index: calls.append(index),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(_C=SimpleNamespace(**parts), cuda=cuda))
    return calls


def test_host_memory_is_no_device() -> None:
    assert engine_device.engine_device(tensors(("cpu", None), ("cpu", None))) is None
    assert engine_device.engine_device({}) is None


def test_a_cuda_device_is_asked_for_its_raw_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_torch(monkeypatch, _cuda_getCurrentRawStream=lambda index: 7 + index)
    found = engine_device.engine_device(tensors(("cuda", 3), ("cuda", 3)))
    assert found is not None
    assert (found.name, found.index, found.current_stream()) == ("cuda:3", 3, 10)
    found.synchronize()
    assert calls == [3]


def test_a_torch_without_the_short_way_is_asked_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    found = engine_device.engine_device(tensors(("cuda", 2)))
    assert found is not None
    assert found.current_stream() == 1002


def test_a_device_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    found = engine_device.engine_device(tensors(("cuda", None)))
    assert found is not None
    assert found.name == "cuda:5"


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (
            [("cuda", 0), ("cuda", 1)],
            "layer layers.1: its KV cache is on device cuda:1 and that of layer layers.0 on cuda:0, and a rank's "
            "layers must be on one: use tensor or pipeline parallelism to spread a model over devices",
        ),
        (
            [("cpu", None), ("cuda", 0)],
            "layer layers.1: its KV cache is on device cuda:0 and that of layer layers.0 on cpu, and a rank's layers "
            "must be on one: use tensor or pipeline parallelism to spread a model over devices",
        ),
        (
            [("xpu", 0)],
            "layer layers.0: its KV cache is on device xpu:0, and this connector copies from and to CUDA devices and "
            "host memory only: serve this model without the connector",
        ),
    ],
)
def test_other_devices_are_refused_by_name(devices: list[tuple[str, int | None]], message: str) -> None:
    with pytest.raises(UnsupportedLayoutError) as caught:
        engine_device.engine_device(tensors(*devices))
    assert str(caught.value) == message


def test_the_memory_behind_views_is_named_once() -> None:
    torch = pytest.importorskip("torch")
    one, other = torch.zeros(64, dtype=torch.uint8), torch.zeros(32, dtype=torch.uint8)
    views = {"a": one[:32], "b": one[32:].view(4, 8), "c": other[8:]}
    assert engine_device.device_memory(views) == sorted([(one.data_ptr(), 64), (other.data_ptr(), 32)])
