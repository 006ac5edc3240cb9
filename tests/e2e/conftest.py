"""Fixtures of the end-to-end suites: vLLM is loaded once, every scenario runs in a fork."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.e2e.options import EngineOptions, engine_environment
from tests.e2e.scenario import Scenarios

# Torch reads these when it is loaded, so before any test does.
os.environ.update(engine_environment())

Reference: TypeAlias = Callable[..., list[list[int]]]


@pytest.fixture(scope="session")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Scenarios:
    """Runs functions in forks of this process; see `tests.e2e.scenario`."""
    return Scenarios(tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="session")
def reference(scenarios: Scenarios) -> Reference:
    """Greedy tokens of an engine without a connector, computed once per session for the same question.

    Tokens are comparable only within one mode (eager or compiled, KV dtype, number of ranks), so the question
    includes the options.
    """
    known: dict[str, list[list[int]]] = {}

    def ask(options: EngineOptions, prompts: list[list[int]], **arguments: Any) -> list[list[int]]:
        plain = options.without_connector()
        key = json.dumps([asdict(plain), prompts, arguments], default=str)
        if key not in known:
            known[key] = scenarios.run(_greedy_tokens, plain, prompts, arguments)
        return known[key]

    return ask


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file for the output of an engine in its own process."""
    return tmp_path / "engine.log"


def _greedy_tokens(options: EngineOptions, prompts: list[list[int]], arguments: dict[str, Any]) -> list[list[int]]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        return [completion.tokens for completion in engine.generate(prompts, **arguments)]
