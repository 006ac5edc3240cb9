"""The engine without our connector: what every other suite takes for granted."""

from typing import Any

import pytest

from tests.e2e.engine_client import EngineClient
from tests.e2e.options import EngineOptions, cpu_has
from tests.e2e.scenario import ScenarioError, Scenarios
from tests.models import ADAPTERS, prompt

PROMPTS = [prompt(seed, 300) for seed in range(2)]
DISTINCT_TOKENS_MIN = 20

ENGINES = {
    "tiny": EngineOptions(),
    "tiny-fp8-kv": EngineOptions(kv_dtype="fp8"),
    "tiny-block-128": EngineOptions(block_tokens=128),
    "hybrid": EngineOptions(model="hybrid"),
    "mla": EngineOptions(model="mla", block_tokens=16),
}


def _run_twice(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        cold = engine.generate(PROMPTS)
        warm = engine.generate(PROMPTS)
        engine.forget()
        again = engine.generate(PROMPTS)
        return {
            "cold": cold,
            "warm": warm,
            "again": again,
            "groups": engine.kv_cache_groups(),
            "external": engine.external_hit_tokens(),
        }


@pytest.mark.matrix
@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES.keys())
def test_greedy_tokens_repeat_and_vary(scenarios: Scenarios, options: EngineOptions) -> None:
    if options.kv_dtype == "fp8" and not cpu_has("avx512f"):
        pytest.skip("vLLM's fp8 KV cache on the CPU needs AVX-512")
    run = scenarios.run(_run_twice, options)
    for cold, warm, again in zip(run["cold"], run["warm"], run["again"], strict=True):
        assert cold["tokens"] == warm["tokens"] == again["tokens"]
        assert len(set(cold["tokens"])) >= DISTINCT_TOKENS_MIN
        assert again["cached_tokens"] == 0
        # The CPU's latent attention switches prefix caching off.
        assert (warm["cached_tokens"] > 0) == (options.model != "mla")
    assert run["external"] == 0


def test_hybrid_model_has_several_groups(scenarios: Scenarios) -> None:
    groups = scenarios.run(_groups, EngineOptions(model="hybrid"))
    kinds = sorted(group["kind"] for group in groups)
    assert kinds == ["FullAttentionSpec", "SlidingWindowSpec", "SlidingWindowSpec"]
    assert {group["window_tokens"] for group in groups} == {96, None}


def _groups(options: EngineOptions) -> Any:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        return engine.kv_cache_groups()


def _overwrite_under_the_cache(options: EngineOptions) -> list[Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        right = engine.generate(PROMPTS)
        engine.overwrite_kv()
        return [right, engine.generate(PROMPTS)]


@pytest.mark.matrix
def test_wrong_kv_bytes_change_the_tokens(scenarios: Scenarios) -> None:
    """The control of all token comparisons: with cached prefixes that hold a pattern, every answer differs."""
    right, wrong = scenarios.run(_overwrite_under_the_cache, EngineOptions())
    for before, after in zip(right, wrong, strict=True):
        assert after["cached_tokens"] > 0
        assert before["tokens"] != after["tokens"]


def _generate_with_adapters(options: EngineOptions) -> list[list[int]]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        runs = [None, *(adapter.folder() for adapter in ADAPTERS)]
        return [engine.generate(PROMPTS[:1], lora=lora)[0].tokens for lora in runs]


def test_adapters_change_the_tokens(scenarios: Scenarios) -> None:
    answers = scenarios.run(_generate_with_adapters, EngineOptions(lora=True))
    assert len({tuple(tokens) for tokens in answers}) == 3


def _preempt(options: EngineOptions, prompts: list[list[int]]) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        return {"tokens": [c.tokens for c in engine.generate(prompts, tokens=64)], "count": engine.preemptions()}


@pytest.mark.matrix
def test_few_blocks_bring_preemption(scenarios: Scenarios) -> None:
    """The knob that other suites use: with 20 blocks, four requests of 7 blocks cannot run together."""
    prompts = [prompt(seed, 150) for seed in range(4)]
    run = scenarios.run(_preempt, EngineOptions(kv_blocks=20, tokens_max=512), prompts)
    assert run["count"] > 0
    assert all(len(set(tokens)) >= DISTINCT_TOKENS_MIN for tokens in run["tokens"])


def _raise() -> None:
    raise ValueError("on purpose")


def _die() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    import time

    time.sleep(60)


@pytest.mark.parametrize(
    ("scenario", "message"), [(_raise, "on purpose"), (_die, "SIGKILL"), (_hang, "no end after 1 s")]
)
def test_a_failed_scenario_is_reported(scenarios: Scenarios, scenario: Any, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        scenarios.run(scenario, timeout_s=1.0)


@pytest.mark.slow
def test_an_engine_process_survives_nothing_of_a_kill(log: Any) -> None:
    """Two engines in processes of their own, the first killed: the second knows nothing and answers the same."""
    answers = []
    for _ in range(2):
        with EngineClient(EngineOptions(), log) as engine:
            answers.append(engine.generate(PROMPTS))
            engine.kill()
    for first, second in zip(*answers, strict=True):
        assert first["tokens"] == second["tokens"]
        assert first["cached_tokens"] == second["cached_tokens"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [{"tensor_parallel": 2}, {"pipeline_parallel": 2}], ids=["tp2", "pp2"])
def test_several_ranks(log: Any, ranks: dict[str, int]) -> None:
    with EngineClient(EngineOptions(**ranks), log) as engine:  # type: ignore[arg-type]
        first = engine.generate(PROMPTS)
        engine.forget()
        again = engine.generate(PROMPTS)
    assert [c["tokens"] for c in first] == [c["tokens"] for c in again]
    assert all(len(set(c["tokens"])) >= DISTINCT_TOKENS_MIN for c in first)
