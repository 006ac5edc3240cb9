"""Part `order`: copies come after what they must come after, and before what must come after them.

Only the device waits: between the calls here the CPU does nothing. What comes before is made slow on purpose, so that a
wait that is missing shows in the bytes.
"""

import threading
from collections.abc import Callable

import numpy as np
import torch

from benches.gpu.bytes_of_copies import PATHS, WAIT_S, first_difference
from benches.gpu.machine import Machine, Tensor, on_host
from benches.gpu.report import Options, Report

SLOW_S = 0.02
"""How long the engine's stream is kept busy: far longer than it takes to call for copies."""


def run(machine: Machine, report: Report, options: Options) -> None:
    """The checks, for each path and on two kinds of streams."""
    for path in PATHS:
        test = Ordered(machine, path, options)
        if path not in test.copies.describe()["paths"]:
            report.skip(f"{path}: order", "; ".join(test.copies.describe()["remarks"]))
            test.close()
            continue
        for name, check in test.checks().items():
            for where in ("default stream", "side stream"):
                problem = machine_runs(machine, where, check)
                report.check(f"{path}, {where}: {name}", problem is None, problem or "")
        violations = test.copies.violations()
        report.check(f"{path}: nothing that no CUDA program may do", not violations, "; ".join(violations[:3]))
        test.close()
    if machine.is_fake:
        for name in ("a stream under capture", "copies and pinning beside a capture", "a stream of another device"):
            report.skip(f"{name}", "a fake device has no such streams")
        return
    test = Ordered(machine, "auto", options)
    problem = test.refuses_captures()
    report.check("a stream under capture is refused, and its graph stays whole", problem is None, problem or "")
    if torch.cuda.device_count() < 2:
        report.skip("a stream of another device is refused", "there is one device")
    else:
        problem = test.refuses_another_device()
        report.check("a stream of another device is refused", problem is None, problem or "")
    # The last one: a capture that breaks leaves torch on its stream.
    problem = test.beside_a_capture()
    report.check("copies and pinning by another thread leave a capture whole", problem is None, problem or "")
    test.close()


def machine_runs(machine: Machine, where: str, check: Callable[[], str | None]) -> str | None:
    """Runs a check on torch's default stream or on one of its own."""
    if where == "default stream":
        return check()
    with machine.side_stream():
        return check()


class Ordered:
    """Pinned memory, memory of the device, and slots of equal size in both."""

    def __init__(self, machine: Machine, path: str, options: Options) -> None:
        self._machine = machine
        self._skip_waits = options.sabotage == "wait"
        self._slot = 4096 if options.fake else 64 << 10
        # An engine takes no more than some hundred single copies at a time.
        self._slots = 32 if options.fake else 384
        count = self._slot * self._slots
        self._bytes = count
        self._rng = np.random.default_rng(7)
        self._host, self._back = on_host(count), on_host(count)
        self._device, self._work = machine.on_device(count), machine.on_device(count)
        self._out = machine.on_device(count)
        self.copies = machine.copies(path, [self._device, self._work, self._out])
        for host in (self._host, self._back):
            self.copies.register(host.data_ptr(), count)

    def close(self) -> None:
        """Gives pinned memory back."""
        for host in (self._host, self._back):
            self.copies.unregister(host.data_ptr())

    def checks(self) -> dict[str, Callable[[], str | None]]:
        """What is looked at on every path; each returns what is wrong."""
        return {
            "an offload waits for the kernels that write": self.producer,
            "kernels wait for a load": self.consumer,
            "a replayed graph waits for a load": self.graph,
            "loads, kernels and offloads in a chain": self.chain,
        }

    def producer(self) -> str | None:
        """Slow work, then a kernel that writes; the offload comes after both."""
        self._device.zero_()
        self._machine.synchronize()
        values = self._random()
        on_device = values.to(self._device.device)
        self._machine.keep_busy(SLOW_S)
        self._device.copy_(on_device)
        ticket = self._submit("offload", self._device, self._back)
        return self._ended(ticket) or first_difference(self._back, values)

    def consumer(self) -> str | None:
        """A load, and at once a kernel that reads what it brings."""
        values = self._fresh_load_source()
        self._machine.keep_busy(SLOW_S)
        ticket = self._submit("load", self._host, self._device)
        self._wait_on_stream(ticket)
        self._out.copy_(self._device)
        self._machine.synchronize()
        return first_difference(self._out, values) or self._ended(ticket)

    def graph(self) -> str | None:
        """The same reader as a CUDA graph, replayed for several loads."""

        def read() -> None:
            torch.bitwise_xor(self._device, 0x5A, out=self._out)

        replay = self._machine.capture(read)
        for _ in range(3):
            values = self._fresh_load_source()
            self._machine.keep_busy(SLOW_S / 4)
            ticket = self._submit("load", self._host, self._device)
            self._wait_on_stream(ticket)
            replay()
            self._machine.synchronize()
            problem = first_difference(self._out, values ^ 0x5A) or self._ended(ticket)
            if problem:
                return problem
        return None

    def chain(self) -> str | None:
        """Load, kernel, offload of the kernel's output, over and over on the same device memory, without the CPU."""
        rounds = 6
        part = self._bytes // rounds // self._slot * self._slot
        values = self._fresh_load_source()
        self._back.zero_()
        tickets = []
        stream = self._machine.stream_of(self.copies)
        self._machine.keep_busy(SLOW_S)
        for turn in range(rounds):
            at = turn * part
            load = self._submit("load", self._host[at : at + part], self._device)
            self._wait_on_stream(load)
            torch.bitwise_xor(self._device[:part], turn + 1, out=self._work[:part])
            offload = self._submit("offload", self._work[:part], self._back[at : at + part])
            # The next turn's kernel writes where this turn's offload reads.
            self.copies.order_after(offload, stream)
            tickets += [load, offload]
        problems = [self._ended(ticket) for ticket in tickets]
        wanted = torch.cat([values[turn * part : (turn + 1) * part] ^ (turn + 1) for turn in range(rounds)])
        return next(filter(None, problems), None) or first_difference(self._back[: rounds * part], wanted)

    def refuses_captures(self) -> str | None:
        """Copies must not become a part of somebody's graph."""
        self._device.fill_(3)
        self._machine.synchronize()
        done = self._submit("load", self._host, self._work)
        accepted = []
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._out.copy_(self._device)
            stream = self._machine.stream_of(self.copies)
            for name, call in (
                ("submit", lambda: self.copies.submit("load", self._pieces(self._host, self._work), after=stream)),
                ("order_after", lambda: self.copies.order_after(done, stream)),
            ):
                try:
                    call()
                    accepted.append(name)
                except ValueError:
                    pass
        graph.replay()
        torch.cuda.synchronize()
        if accepted:
            return f"{' and '.join(accepted)} accepted it"
        return first_difference(self._out, torch.full((self._bytes,), 3, dtype=torch.uint8)) or self._ended(done)

    def beside_a_capture(self) -> str | None:
        """As while vLLM captures its graphs: our threads pin memory and copy, in CUDA's strictest mode of captures."""
        problems: list[str] = []
        loose = on_host(4 << 20)
        values = self._fresh_load_source()

        def beside() -> None:
            try:
                self.copies.register(loose.data_ptr(), 4 << 20)
                ticket = self.copies.submit("load", self._pieces(self._host, self._work))
                if not self.copies.wait(ticket, WAIT_S):
                    problems.append("the copies have not ended")
                self.copies.unregister(loose.data_ptr())
            except ValueError as error:
                problems.append(f"our call failed: {error}")

        self._out.fill_(0)  # a kernel that has not been loaded may not be loaded under capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="global"):
                self._out.fill_(9)
                thread = threading.Thread(target=beside)
                thread.start()
                thread.join()
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError as error:
            return f"the capture failed: {str(error).splitlines()[0]}; {'; '.join(problems)}"
        wanted = torch.full((self._bytes,), 9, dtype=torch.uint8)
        problem = first_difference(self._out, wanted) or first_difference(self._work, values)
        return "; ".join(problems) or problem

    def refuses_another_device(self) -> str | None:
        """A stream that belongs to the second device."""
        stream = torch.cuda.Stream(device=1)
        try:
            self.copies.submit("load", self._pieces(self._host, self._device), after=int(stream.cuda_stream))
        except ValueError:
            return None
        return "it was accepted"

    def _random(self) -> Tensor:
        words = self._rng.integers(0, 1 << 63, self._bytes // 8, dtype=np.int64)
        return torch.from_numpy(words).view(torch.uint8)

    def _fresh_load_source(self) -> Tensor:
        """New bytes in pinned memory, and none of them on the device."""
        values = self._random()
        self._host.copy_(values)
        self._device.copy_(~values)
        self._out.copy_(~values)
        self._machine.synchronize()
        return values

    def _pieces(self, source: Tensor, target: Tensor) -> list[tuple[int, int, int]]:
        """The whole, slot by slot from the last to the first, so that no two pieces are one."""
        count = min(len(source), len(target)) // self._slot
        starts = [index * self._slot for index in reversed(range(count))]
        return [(source.data_ptr() + at, target.data_ptr() + at, self._slot) for at in starts]

    def _submit(self, direction: str, source: Tensor, target: Tensor) -> int:
        after = None if self._skip_waits else self._machine.stream_of(self.copies)
        return self.copies.submit(direction, self._pieces(source, target), after=after, urgent=direction == "load")

    def _wait_on_stream(self, ticket: int) -> None:
        if not self._skip_waits:
            self.copies.order_after(ticket, self._machine.stream_of(self.copies))

    def _ended(self, ticket: int) -> str | None:
        ended = self.copies.wait(ticket, WAIT_S)
        return None if ended else f"a batch has not ended within {WAIT_S:g} s"
