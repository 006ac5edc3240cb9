"""The connector in one process: what the engine computed once is loaded the next time, with the same tokens."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.options import EngineOptions
from tests.e2e.scenario import Scenarios
from tests.models import prompt

PROMPTS = [prompt(seed, 300) for seed in range(2)]


def _run_twice(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        first = engine.generate(PROMPTS)
        engine.forget()
        again = engine.generate(PROMPTS)
        return {"first": first, "again": again, "hits": engine.external_hit_tokens()}


@pytest.mark.matrix
@pytest.mark.parametrize("load_mode", ["layerwise", "async"])
@pytest.mark.parametrize("model", ["tiny", "hybrid"])
def test_second_run_loads(
    scenarios: Scenarios, reference: Callable[..., list[list[int]]], model: str, load_mode: str
) -> None:
    if model == "hybrid" and load_mode == "layerwise":
        pytest.skip("several KV cache groups load between steps")
    options = EngineOptions(model=model, connector={"capacity": "64MiB", "load_mode": load_mode})
    run = scenarios.run(_run_twice, options)
    # The first token of the answer needs one computed token, so at most the 9 full blocks of 300 tokens are loaded.
    assert 0 < run["hits"] <= 2 * 288
    assert run["hits"] == sum(completion["cached_tokens"] for completion in run["again"])
    expected = reference(options, PROMPTS)
    assert [completion["tokens"] for completion in run["first"]] == expected
    assert [completion["tokens"] for completion in run["again"]] == expected
