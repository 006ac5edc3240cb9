"""Engines that take turns: each lives in a forked process and answers one question at a time.

Two engines cannot live in one process, and two runs one after the other compare two moments of the machine rather than
two engines. So both are started first, and the parent asks one, then the other, then the first again: while one
computes, the other waits at its pipe and takes no time.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.e2e.options import EngineOptions
from tests.e2e.scenario import PRELOADED

QUESTIONS = "benches.engine.questions"
"""Loaded by name, and late: it loads torch, which reads the number of its threads then."""


class SideFailed(RuntimeError):
    """An engine failed or died; the message holds the end of its log."""


class Side:
    """An engine in a process of its own, `process_id`. It answers the questions of `benches.engine.questions`."""

    def __init__(self, name: str, options: EngineOptions, log: Path) -> None:
        self.name = name
        self._log = log
        question_reader, question_writer = os.pipe()
        answer_reader, answer_writer = os.pipe()
        sys.stdout.flush()
        with warnings.catch_warnings():
            # Python warns that the process has threads. They are idle pools: no engine was ever started here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process_id = os.fork()
        if self.process_id == 0:
            os.close(question_writer)
            os.close(answer_reader)
            _serve(options, log, question_reader, answer_writer)
        os.close(question_reader)
        os.close(answer_writer)
        self._questions = os.fdopen(question_writer, "w", buffering=1)
        self._answers = os.fdopen(answer_reader)
        self._receive()

    def ask(self, question_name: str, *args: Any) -> Any:
        """Runs a function of `benches.engine.questions` in the engine's process and returns what it returned."""
        question = {"name": question_name, "args": args}
        self._questions.write(json.dumps(question) + "\n")
        return self._receive()

    def _receive(self) -> Any:
        line = self._answers.readline()
        answer = json.loads(line) if line else {"error": "the process has died"}
        if "error" in answer:
            tail = "\n".join(text[:300] for text in self._log.read_text(errors="replace").splitlines()[-30:])
            raise SideFailed(f"{self.name}: {answer['error']}\n--- end of {self._log}\n{tail}")
        return answer["result"]

    def close(self) -> None:
        """Ends the process."""
        self._questions.close()
        self._answers.close()
        until = time.monotonic() + 10
        while os.waitpid(self.process_id, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.kill(self.process_id, signal.SIGKILL)
                os.waitpid(self.process_id, 0)
                return
            time.sleep(0.02)


@contextmanager
def sides(logs: Path, **options: EngineOptions) -> Iterator[dict[str, Side]]:
    """Starts one engine per name, and ends all of them.

    Args:
        logs: Folder of their logs.
        options: The engines by name.
    """
    with ExitStack() as stack:
        started = {}
        for name, option in options.items():
            started[name] = Side(name, option, logs / f"{name}-{time.monotonic_ns()}.log")
            stack.callback(started[name].close)
        yield started


def preload() -> None:
    """Imports vLLM, which the forks then share."""
    for module in (*PRELOADED, QUESTIONS):
        importlib.import_module(module)


def _serve(options: EngineOptions, log: Path, questions: int, answers: int) -> NoReturn:
    """Never returns: the child must not run the parent's clean-up."""
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        with os.fdopen(answers, "w", buffering=1) as replies:

            def reply(answer: dict[str, Any]) -> None:
                replies.write(json.dumps(answer) + "\n")

            try:
                questions_module = importlib.import_module(QUESTIONS)
                from tests.e2e.engine import Engine

                with Engine(options) as engine:
                    reply({"result": None})
                    for line in os.fdopen(questions):
                        question = json.loads(line)
                        answer = getattr(questions_module, question["name"])(engine, *question["args"])
                        reply({"result": answer})
            except BaseException:
                reply({"error": traceback.format_exc()})
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
