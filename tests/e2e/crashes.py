"""Engines that die in the middle of their work, and what they leave behind.

A scenario that is to die takes a `Death` as its first argument: it says what it has seen and is killed with SIGKILL,
with all its processes, while its engine is alive. Nothing is closed, flushed or unlocked by it.
"""

import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.e2e.scenario import TIMEOUT_S, ScenarioError, Scenarios, _plain


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A fresh folder in shared memory, removed at the end with what is in it."""
    folder = Path(tempfile.mkdtemp(prefix="kvcache-test-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Death:
    """How a scenario ends, made before its engine so that the executioner holds none of the engine's locks."""

    def __init__(self, answer: Path) -> None:
        self._answer = answer
        order, self._orders = os.pipe()
        victim = os.getpgid(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            executioner = os.fork()
        if executioner == 0:
            os.close(self._orders)
            delay = os.read(order, 8)
            if len(delay) == 8:
                time.sleep(struct.unpack("d", delay)[0])
                os.killpg(victim, signal.SIGKILL)
            os._exit(0)
        os.close(order)

    def last_words(self, result: Any) -> None:
        """Keeps what the scenario has seen so far; later words replace earlier ones."""
        draft = self._answer.with_suffix(".draft")
        draft.write_text(json.dumps(result, default=_plain))
        draft.rename(self._answer)

    def comes_in(self, seconds: float) -> None:
        """The process group will be killed after this time, whatever it is doing then."""
        os.write(self._orders, struct.pack("d", seconds))

    def comes_now(self, result: Any) -> NoReturn:
        """Keeps the result and ends the process group."""
        self.last_words(result)
        os.killpg(0, signal.SIGKILL)
        raise AssertionError("SIGKILL cannot be survived")


def run_and_kill(
    scenarios: Scenarios,
    function: Callable[..., Any],
    *args: Any,
    timeout_s: float = TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Runs `function(death, *args)` in a child that must die by SIGKILL; returns its last words."""
    answer = scenarios.logs / f"{scenarios.count + 1:03}-last-words.json"
    with pytest.raises(ScenarioError, match="died with signal SIGKILL"):
        scenarios.run(_mortal, function, answer, args, timeout_s=timeout_s, environment=environment)
    return json.loads(answer.read_text())


def _mortal(function: Callable[..., Any], answer: Path, args: tuple[Any, ...]) -> Any:
    fork_ranks()
    return function(Death(answer), *args)


def fork_ranks() -> None:
    """Makes this scenario's engine fork its processes, which vLLM's CPU platform would start afresh.

    The scenario has loaded vLLM and started nothing, so that forking it is as safe here as it was for the scenario
    itself, and it saves every process the half minute of its imports.
    """
    from vllm.utils import system_utils

    # The test process turns warnings into errors; a process of vLLM's own would not.
    warnings.simplefilter("ignore")
    original = system_utils.get_mp_context
    for module in list(sys.modules.values()):
        if module.__name__.startswith("vllm") and vars(module).get("get_mp_context") is original:
            module.__dict__["get_mp_context"] = lambda: multiprocessing.get_context("fork")


class Watch:
    """Writes a number into a file a thousand times a second, so that it can be read after the process was killed."""

    def __init__(self, path: Path, read: Callable[[], int]) -> None:
        path.write_bytes(bytes(8))
        self._read = read
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            struct.pack_into("q", self._memory, 0, self._read())
            time.sleep(0.001)

    @staticmethod
    def last(path: Path) -> int:
        """What the number was when the process died."""
        return int(struct.unpack("q", path.read_bytes())[0])


@dataclass
class SlabFile:
    """A slab file as docs/format.md describes it, to look into and to damage while nobody has it open."""

    path: Path

    HEADER = struct.Struct("<8sQ16s16sQQQQQ")
    FILLING, READY = 1, 2
    RECORD_BYTES = 128

    def __post_init__(self) -> None:
        with self.path.open("rb") as file:
            magic, _, _, _, self.slot_bytes, self.slot_count, self.table_offset, self.data_offset, _ = (
                self.HEADER.unpack(file.read(self.HEADER.size))
            )
        assert magic == b"KVCSLAB\n"

    @staticmethod
    def all(folder: Path, *, rank: int | None = None) -> "list[SlabFile]":
        """The slab files of a folder, of one rank or of all, in the order of their names."""
        pattern = "*.slab" if rank is None else f"*-rank{rank}.slab"
        return [SlabFile(path) for path in sorted(folder.glob(pattern))]

    def lane(self) -> int:
        """The lane that the file's name says."""
        return int(self.path.name.split("-lane")[1].split("-")[0])

    def slots(self, state: int) -> list[int]:
        """The slots in a state, in the order in which they were filled."""
        with self.path.open("rb") as file:
            file.seek(self.table_offset)
            table = file.read(self.RECORD_BYTES * self.slot_count)
        found = []
        for slot in range(self.slot_count):
            record = table[slot * self.RECORD_BYTES : (slot + 1) * self.RECORD_BYTES]
            if struct.unpack_from("<I", record)[0] == state:
                found.append((struct.unpack_from("<Q", record, 8 + 8 * 8)[0], slot))
        return [slot for _, slot in sorted(found)]

    def flip_key(self, slot: int) -> None:
        """Damages a slot's record: one bit of its key."""
        self._flip(self.table_offset + slot * self.RECORD_BYTES + 8)

    def flip_data(self, slot: int, at: int | None = None) -> None:
        """Damages a slot's bytes: one bit, in the middle or at an offset."""
        stride = -(-self.slot_bytes // 64) * 64
        self._flip(self.data_offset + slot * stride + (self.slot_bytes // 2 if at is None else at))

    def _flip(self, offset: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x10]))


def moments(count: int, longest_s: float, seed: int) -> list[float]:
    """Random moments, the same in every run of the tests."""
    draw = random.Random(seed)
    return [draw.uniform(0.0, longest_s) for _ in range(count)]
