"""Where the engine's tensors are: host memory, or a CUDA device with a stream that the engine computes on.

Torch is asked through the module that the engine has loaded, never imported: so the wheel needs no torch, and none of
its versions.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aibrix_connector.kv_groups import UnsupportedLayoutError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EngineDevice:
    """A CUDA device that holds the engine's tensors."""

    index: int
    """Its number in this process."""
    current_stream: Callable[[], int]
    """Returns the raw handle of the stream that the calling thread computes on: well below a microsecond."""
    synchronize: Callable[[], None]
    """Returns when everything that was submitted to the device has been computed."""

    @property
    def name(self) -> str:
        """Its name for the native side, as in ``cuda:0``."""
        return f"cuda:{self.index}"


def engine_device(kv_caches: "dict[str, torch.Tensor]") -> EngineDevice | None:
    """Returns the CUDA device of the engine's tensors, or None if they are in host memory.

    Raises:
        UnsupportedLayoutError: They are on several devices, or on one of another kind; names layer and device.
    """
    first, place = "", ("cpu", None)
    for name, tensor in kv_caches.items():
        here = (tensor.device.type, tensor.device.index)
        if here[0] not in ("cpu", "cuda"):
            raise UnsupportedLayoutError(
                f"layer {name}: its KV cache is on device {tensor.device}, and this connector copies from and to CUDA "
                "devices and host memory only: serve this model without the connector"
            )
        if first and here != place:
            raise UnsupportedLayoutError(
                f"layer {name}: its KV cache is on device {tensor.device} and that of layer {first} on "
                f"{kv_caches[first].device}, and a rank's layers must be on one: use tensor or pipeline parallelism to "
                "spread a model over devices"
            )
        first, place = first or name, here
    if place[0] == "cpu":
        return None
    torch: Any = sys.modules["torch"]
    index = torch.cuda.current_device() if place[1] is None else place[1]
    return EngineDevice(index, _stream_source(torch, index), functools.partial(torch.cuda.synchronize, index))


def _stream_source(torch: Any, index: int) -> Callable[[], int]:
    # The public way makes a Python object at each call, ten times the cost; compiled models use this one.
    raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if raw is not None:
        return functools.partial(raw, index)
    return lambda: int(torch.cuda.current_stream(index).cuda_stream)


def drilled_device(stream: int) -> EngineDevice:
    """Returns the device that a CPU engine's memory plays in the drill `fake_cuda`.

    Args:
        stream: What stands for the CPU's own work, which has ended when it returns.
    """
    return EngineDevice(0, lambda: stream, lambda: None)


def device_memory(kv_caches: "dict[str, torch.Tensor]") -> list[tuple[int, int]]:
    """Returns (base, bytes) of the allocations behind the tensors, each once: layers are views of one or of several."""
    storages = (tensor.untyped_storage() for tensor in kv_caches.values())
    return sorted({(storage.data_ptr(), storage.nbytes()) for storage in storages})
