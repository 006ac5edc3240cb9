"""The device under test and torch's view of it: a GPU, or a fake one whose memory is the host's.

With the fake, torch computes on the CPU, at once, and only our copies are late: as late as CUDA allows. So whatever
forgets to wait reads old bytes there too.
"""

import mmap
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from aibrix_connector import _native

Tensor: TypeAlias = torch.Tensor


class Machine:
    """A GPU. Times are those of CUDA events on torch's current stream."""

    is_fake = False
    device = "cuda:0"

    def __init__(self) -> None:
        torch.cuda.set_device(0)
        # Before anything is allocated: memory comes from the node of the thread that writes to it first, and plain
        # copies, whose memory the driver writes to, and ours would otherwise have theirs on different ones.
        self._cpus = stay_near(pci_address(torch.cuda.get_device_properties(0)))
        self._cycles_per_s = self._measure_clock()

    def on_device(self, count: int) -> Tensor:
        """Returns so many bytes of device memory, with anything in them."""
        return torch.empty(count, dtype=torch.uint8, device=self.device)

    def copies(self, path: str, memory: Sequence[Tensor]) -> _native.CudaCopies:
        """Opens a copy engine; `memory` is all of the device's that it will touch."""
        return _native.CudaCopies(self.device, path)

    def store_options(self, memory: Sequence[Tensor]) -> dict[str, Any]:
        """Returns what tells a `Store` of the device."""
        return {"device": self.device}

    def stream_of(self, opened: _native.CudaCopies | _native.Store) -> int:
        """Returns the handle of torch's current stream."""
        return int(torch.cuda.current_stream().cuda_stream)

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Within it torch's current stream is one of its own, behind the default one."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def synchronize(self) -> None:
        """Waits for everything on the device."""
        torch.cuda.synchronize()

    def keep_busy(self, seconds: float) -> None:
        """Puts a kernel that takes so long into the current stream."""
        torch.cuda._sleep(max(1, int(seconds * self._cycles_per_s)))

    def mark(self) -> Any:
        """Notes the time when the current stream has come so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, began: Any, ended: Any) -> float:
        """Waits for two marks and returns the time between them."""
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Returns a call that does `work` again, on the current stream, as one CUDA graph."""
        with self.side_stream():
            work()  # libraries set themselves up outside of the graph
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return lambda: graph.replay()

    def facts(self) -> dict[str, Any]:
        """Returns what the numbers depend on."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / (1 << 30), 1),
            "multiprocessors": properties.multi_processor_count,
            "gpus": torch.cuda.device_count(),
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "clock_hz": round(self._cycles_per_s),
            "cpus_near_gpu": self._cpus,
        }

    @staticmethod
    def _measure_clock() -> float:
        cycles = 20_000_000
        # An idle GPU runs at a fraction of its clock: it gets time to wake up.
        for _ in range(20):
            torch.cuda._sleep(cycles)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        torch.cuda._sleep(cycles)
        ended.record()
        ended.synchronize()
        return cycles / (float(began.elapsed_time(ended)) / 1e3)


class FakeMachine(Machine):
    """No GPU: the fake device of `kvcache-cuda`. Its times say nothing about any."""

    is_fake = True
    device = "cpu"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def copies(self, path: str, memory: Sequence[Tensor]) -> _native.CudaCopies:
        self._seed += 1
        return _native.CudaCopies("cuda:0", path, fake_memory=[place_of(one) for one in memory], seed=self._seed)

    def store_options(self, memory: Sequence[Tensor]) -> dict[str, Any]:
        return {"device": "cuda:0", "device_memory": [place_of(one) for one in memory]}

    def stream_of(self, opened: _native.CudaCopies | _native.Store) -> int:
        stream = opened.stream_for_cpu()
        assert stream is not None, "a fake device has been opened"
        return stream

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None:
        """Torch has nothing pending, and our copies are waited for by their tickets."""

    def keep_busy(self, seconds: float) -> None:
        """The CPU's stream holds nothing."""

    def mark(self) -> Any:
        return time.perf_counter()

    def seconds(self, began: Any, ended: Any) -> float:
        return float(ended - began)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def facts(self) -> dict[str, Any]:
        return {"gpu": "fake device", "gpus": 0, "torch": torch.__version__}


def place_of(tensor: Tensor) -> tuple[int, int]:
    """Returns the address and the bytes of a tensor's storage."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def pci_address(properties: Any) -> str:
    """Returns a device's address in Linux's form, or nothing where torch does not tell."""
    try:
        return f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    except AttributeError:
        return ""


def stay_near(address: str, devices: Path = Path("/sys/bus/pci/devices")) -> int | None:
    """Keeps this thread, and those it starts, on CPUs of a PCI device's node; how many, or None where nobody knows."""
    try:
        listed = (devices / address / "local_cpulist").read_text()
    except OSError:
        return None
    near: set[int] = set()
    for span in filter(None, listed.strip().split(",")):
        first, _, last = span.partition("-")
        near.update(range(int(first), int(last or first) + 1))
    near &= os.sched_getaffinity(0)
    if not near:
        return None
    os.sched_setaffinity(0, near)
    return len(near)


def on_host(count: int) -> Tensor:
    """Returns so many bytes of host memory that start at a page and are not pinned."""
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without them
    return torch.frombuffer(memory, dtype=torch.uint8)


def host_facts() -> dict[str, Any]:
    """Returns what the numbers depend on beside the GPU."""
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return {
        "processor": names[0] if names else platform.machine(),
        "cpus": len(names),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
    }
