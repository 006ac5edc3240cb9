"""What the programs of sides share: answers in lines of JSON, times, prompts and bytes that follow from numbers.

The programs run in the environments of their sides, so this needs NumPy and nothing else. All are started from the
repository's root: `python -m benches.compare.l1_side ours`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK_TOKENS = 16


class Blocks:
    """Blocks of noise, each with a round's number and its own index in front: whoever makes them gets the same.

    Args:
        count: Blocks at most.
        block_bytes: Of a block, 16 at least.
    """

    def __init__(self, count: int, block_bytes: int) -> None:
        self.memory: Any = np.random.default_rng(1).integers(0, 255, count * block_bytes, dtype=np.uint8)
        self._block_bytes = block_bytes

    def of(self, number: int, count: int) -> Any:
        """The bytes of the first `count` blocks of a round, in `memory`, until the next call."""
        data = self.memory[: count * self._block_bytes]
        stamps = data.reshape(count, self._block_bytes)[:, :16].view(np.int64)
        stamps[:, 0], stamps[:, 1] = number, np.arange(count)
        return data

    def check(self, number: int, count: int, out: Any) -> None:
        """Compares what came back.

        Raises:
            RuntimeError: A byte differs.
        """
        if not np.array_equal(out[: count * self._block_bytes], self.of(number, count)):
            raise RuntimeError(f"the bytes of round {number} came back wrong")


def prompt(number: int, blocks: int) -> Any:
    """The tokens of a prompt; prompts differ from their first block on."""
    return np.random.default_rng([11, number]).integers(0, 50_000, blocks * BLOCK_TOKENS, dtype=np.int32)


def timed(us: dict[str, float], verb: str, call: Callable[[], Any]) -> Any:
    """Calls, notes the time, returns what the call returned."""
    began = time.perf_counter_ns()
    returned = call()
    us[verb] = (time.perf_counter_ns() - began) / 1e3
    return returned


def expect(counts: dict[str, int], wanted: dict[str, int]) -> None:
    """A call that does less than the other side's is not measured."""
    for verb, count in counts.items():
        if count != wanted[verb]:
            raise RuntimeError(f"{verb} answered {count} of {wanted[verb]} blocks")


def answer(verbs: dict[str, Callable[..., dict[str, Any]]]) -> int:
    """Answers the questions on the standard input until it ends; an exception is an answer as well."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # Whatever a package prints goes where its complaints go.
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answered = verbs[question.pop("do")](**question)
        except Exception as error:
            answered = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answered) + "\n")
    return 0
