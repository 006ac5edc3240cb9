"""Scenarios: Python functions that run in a forked child of the test process.

Loading vLLM takes many times longer than a scenario, and an engine leaves state behind (threads, registered
connectors, environment). So the test process loads vLLM once, starts no engine itself, and forks one child per
scenario: the child starts with vLLM loaded, runs one function, and sends back what it returned. It has its own time
limit, log file and process group, so that a scenario that hangs or leaves processes behind harms no other.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

TIMEOUT_S = 120.0


class ScenarioError(AssertionError):
    """A scenario raised, died or ran out of time; the message holds the end of its log."""


class Scenarios:
    """Runs scenarios one after the other, keeping their logs in one folder."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.count = 0
        for module in PRELOADED:
            importlib.import_module(module)
        for module in PRELOADED_IF_THERE:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        # An engine collects garbage half a dozen times while it starts and stops. Without this, each time looks at
        # everything that was loaded here, and copies its pages: half of a scenario's time.
        gc.collect()
        gc.freeze()

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        timeout_s: float = TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        """Runs `function(*args)` in a child.

        Args:
            function: The scenario. What it returns must be writable as JSON; dataclasses become dicts.
            args: Its arguments; the child has the parent's memory, so any object will do.
            timeout_s: Seconds after which the child and all its processes are killed.
            environment: Environment variables to set in the child.

        Returns:
            What the function returned, after a round trip through JSON.

        Raises:
            ScenarioError: The function raised, the child died, or time ran out.
        """
        self.count += 1
        log = self.logs / f"{self.count:03}-{function.__name__.strip('_')}.log"
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # Python warns that the process has threads. They are idle pools: no engine was ever started here.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(reader)
            _run_child(function, args, environment or {}, log, writer)
        os.close(writer)
        try:
            reply = _read_until(reader, time.monotonic() + timeout_s)
        finally:
            os.close(reader)
            status = _end(child)
        if reply is None:
            raise ScenarioError(f"{function.__name__}: no end after {timeout_s:.0f} s\n{_tail(log)}")
        if not reply:
            raise ScenarioError(f"{function.__name__}: died with {_explain(status)}\n{_tail(log)}")
        answer = json.loads(reply)
        if "error" in answer:
            raise ScenarioError(f"{function.__name__}:\n{answer['error']}\n{_tail(log)}")
        return answer["result"]


def _run_child(
    function: Callable[..., Any], args: tuple[Any, ...], environment: Mapping[str, str], log: Path, writer: int
) -> NoReturn:
    """Never returns: the child must not run the parent's clean-up."""
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        os.environ.update(environment)
        # vLLM thaws at its end what it has frozen at its start, and here with it what was loaded before.
        gc.unfreeze = lambda: None
        try:
            answer = json.dumps({"result": function(*args)}, default=_plain)
        except BaseException:
            answer = json.dumps({"error": traceback.format_exc()})
        data = answer.encode()
        while data:
            data = data[os.write(writer, data) :]
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(f"a scenario returned {type(value).__name__}, which JSON cannot hold")


def _read_until(reader: int, deadline: float) -> bytes | None:
    """Reads to the end of the pipe; None if the deadline comes first.

    A process that the scenario left behind may hold the pipe open, so a whole answer ends the reading too.
    """
    data = b""
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], min(left_s, 1.0))[0]:
            if data and _is_whole(data):
                return data
            continue
        piece = os.read(reader, 1 << 16)
        if not piece:
            return data
        data += piece
    return None


def _is_whole(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _end(child: int) -> int:
    """Gives the child a moment to end, kills what is left of its process group, and reaps it."""
    deadline = time.monotonic() + 2.0
    status = 0
    ended = False
    while not ended and time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended = pid == child
        if not ended:
            time.sleep(0.01)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not ended:
        _, status = os.waitpid(child, 0)
    return status


def _explain(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _tail(log: Path, lines: int = 40) -> str:
    """The end of the log; vLLM prints its whole configuration on one line, which hides the rest."""
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([f"--- end of {log}", *(line[:300] for line in text[-lines:])])


PRELOADED = (
    "vllm",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.engine.llm_engine",
    "vllm.model_executor.models.llama",
    "tests.e2e.engine",
)
"""What a scenario would otherwise load again and again: vLLM loads these when an engine starts."""

PRELOADED_IF_THERE = (
    "vllm.lora.resolver",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm.plugins.lora_resolvers.hf_hub_resolver",
    "vllm.entrypoints.launchers.cli_args",
    "compressed_tensors",
)
"""The same, of releases that have them."""
