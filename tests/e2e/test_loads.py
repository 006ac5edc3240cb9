"""What the engine computed once is loaded the next time, with the same tokens, in every mode of the engine."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.options import EngineOptions, cpu_has
from tests.e2e.scenario import ScenarioError, Scenarios
from tests.models import ADAPTERS, prompt

PROMPTS = [prompt(seed, 300) for seed in range(2)]
L1 = {"capacity": "64MiB"}

Reference = Callable[..., list[list[int]]]

MODES = {
    "layerwise": EngineOptions(connector=L1 | {"load_mode": "layerwise"}),
    "async": EngineOptions(connector=L1 | {"load_mode": "async"}),
    "auto": EngineOptions(connector=L1),
    "one-block-slots": EngineOptions(connector=L1 | {"slot_blocks": 1}),
    "large-slots": EngineOptions(connector=L1 | {"slot_blocks": 8}),
    "no-copy-threads": EngineOptions(connector=L1 | {"copy_threads": 0}),
    "no-copy-threads-async": EngineOptions(connector=L1 | {"copy_threads": 0, "load_mode": "async"}),
    "no-layers-ahead": EngineOptions(connector=L1 | {"layers_ahead": 0}),
    "token-keys": EngineOptions(connector=L1 | {"key_source": "tokens"}),
    "lru": EngineOptions(connector=L1 | {"eviction": "lru"}),
    "checksums": EngineOptions(connector=L1 | {"verify_l1": True}),
    "block-128": EngineOptions(connector=L1, block_tokens=128),
    "no-prefix-caching": EngineOptions(connector=L1, prefix_caching=False),
    "no-prefix-caching-async": EngineOptions(connector=L1 | {"load_mode": "async"}, prefix_caching=False),
    "one-chunk": EngineOptions(connector=L1, step_tokens_max=2048),
    "fp8-kv": EngineOptions(connector=L1, kv_dtype="fp8"),
    "hybrid": EngineOptions(model="hybrid", connector=L1),
    "hybrid-one-block-slots": EngineOptions(model="hybrid", connector=L1 | {"slot_blocks": 1}),
}


SLOW_MODES = ("no-copy-threads-async", "no-prefix-caching-async", "no-layers-ahead", "lru", "hybrid-one-block-slots")
"""Modes that differ little from others, and are left to the slow part."""


def _run_twice(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats, store_stats

    with Engine(options) as engine:
        first = engine.generate(PROMPTS)
        engine.forget()
        again = engine.generate(PROMPTS)
        return {
            "first": first,
            "again": again,
            "hits": engine.external_hit_tokens(),
            "planner": planner_stats(engine),
            "store": store_stats(engine),
        }


@pytest.mark.matrix
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[pytest.mark.slow] if name in SLOW_MODES else [])
        for name, options in MODES.items()
    ],
)
def test_second_run_loads(scenarios: Scenarios, reference: Reference, options: EngineOptions) -> None:
    if options.kv_dtype == "fp8" and not cpu_has("avx512f"):
        pytest.skip("vLLM's fp8 KV cache on the CPU needs AVX-512")
    if options.model == "hybrid" and os.environ.get("VLLM_VERSION", "").startswith("0.29"):
        with pytest.raises(
            ScenarioError, match=r"cannot recover from a failed load with . KV cache groups: upgrade vLLM"
        ):
            scenarios.run(_run_twice, options)
        return
    run = scenarios.run(_run_twice, options)
    # Slots hold whole blocks, and one token is left to compute: most of 300 tokens, and never all.
    assert 2 * 256 <= run["hits"] <= 2 * 299
    assert run["hits"] == sum(completion["cached_tokens"] for completion in run["again"])
    assert run["store"]["loaded_bytes"] > 0
    # A prompt longer than a step is stored in several jobs, behind the forward pass of each.
    chunks = -(-300 * len(PROMPTS) // options.step_tokens_max)
    assert run["store"]["offloads"] >= min(3, chunks, run["planner"]["stored_blocks"])
    assert run["planner"]["jobs_in_flight"] == 0
    assert run["planner"]["slots_pinned"] == 0
    assert run["planner"]["refused"] == run["planner"]["failed_stores"] == run["planner"]["failed_loads"] == 0
    expected = reference(options, PROMPTS)
    assert [completion["tokens"] for completion in run["first"]] == expected
    assert [completion["tokens"] for completion in run["again"]] == expected


@pytest.mark.matrix
@pytest.mark.parametrize("load_mode", ["layerwise", "async"])
def test_claimed_hits_that_load_nothing_change_the_tokens(
    scenarios: Scenarios, reference: Reference, load_mode: str
) -> None:
    """The negative control: without the bytes, the answers are others."""
    options = EngineOptions(connector=L1 | {"load_mode": load_mode, "drill": "claim_hits_load_nothing"})
    run = scenarios.run(_run_twice, options)
    assert run["hits"] > 0
    assert run["store"]["loaded_bytes"] == 0
    for expected, got in zip(reference(options, PROMPTS), run["again"], strict=True):
        assert got["tokens"] != expected


def _latent_blocks(options: EngineOptions) -> dict[str, Any]:
    import torch

    from tests.e2e.engine import Engine
    from tests.e2e.inside import add, run

    with Engine(options) as engine:
        scheduler = engine.core().scheduler
        snapshots: list[list[Any]] = []
        kv_caches = engine.core().model_executor.driver_worker.worker.model_runner.kv_caches

        def snapshot(steps: int) -> None:
            for request in scheduler.requests:
                if len(blocks := scheduler.kv_cache_manager.get_block_ids(request)[0]) and len(done) == len(snapshots):
                    snapshots.append([torch.stack([layer[block] for block in blocks]).clone() for layer in kv_caches])

        done: list[Any] = []
        for name in ("first", "again"):
            add(engine, name, PROMPTS[0], answer=4)
            done.extend(run(engine, snapshot).values())
            engine.forget()
        equal = [bool(torch.equal(a[:16], b[:16])) for a, b in zip(*snapshots, strict=True)]
        return {"first": done[0], "again": done[1], "equal": equal}


@pytest.mark.matrix
def test_latent_attention_loads_the_same_bytes(scenarios: Scenarios, reference: Reference) -> None:
    """vLLM's CPU backend gives a token's latent keys other bytes in a prompt of another length, connector or not, so
    that answers behind a prefix cannot be compared with answers computed at once. The loaded blocks can."""
    options = EngineOptions(model="mla", block_tokens=16, connector=L1)
    run = scenarios.run(_latent_blocks, options)
    assert run["first"]["cached_tokens"] == 0
    assert run["again"]["cached_tokens"] == 256
    assert len(run["equal"]) > 1
    assert all(run["equal"])
    assert [run["first"]["tokens"]] == reference(options, PROMPTS[:1], tokens=4)


def _adapters_and_salts(options: EngineOptions, prompts: list[list[int]]) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        who: dict[str, dict[str, Any]] = {
            "nobody": {},
            "adapter a": {"lora": ADAPTERS[0].folder()},
            "adapter b": {"lora": ADAPTERS[1].folder()},
            "salt a": {"salt": "a"},
            "salt b": {"salt": "b"},
            "adapter a, salt a": {"lora": ADAPTERS[0].folder(), "salt": "a"},
        }
        rounds = []
        for _ in range(2):
            answers = {}
            for name, arguments in who.items():
                answers[name] = engine.generate(prompts, **arguments)[0]
                engine.forget()
            rounds.append(answers)
        return {"first": rounds[0], "again": rounds[1]}


@pytest.mark.matrix
@pytest.mark.parametrize("key_source", ["engine", "tokens"])
def test_adapters_and_salts_never_mix(scenarios: Scenarios, key_source: str) -> None:
    options = EngineOptions(connector=L1 | {"key_source": key_source}, lora=True)
    run = scenarios.run(_adapters_and_salts, options, PROMPTS[:1], timeout_s=180)
    for name, first in run["first"].items():
        assert first["cached_tokens"] == 0, f"{name} got another's blocks"
        assert run["again"][name]["cached_tokens"] == 256, name
        assert run["again"][name]["tokens"] == first["tokens"], name
    tokens = {name: tuple(answer["tokens"]) for name, answer in run["first"].items()}
    assert len({tokens["nobody"], tokens["adapter a"], tokens["adapter b"]}) == 3
    assert tokens["salt a"] == tokens["salt b"] == tokens["nobody"]


def _reset(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats

    with Engine(options) as engine:
        engine.generate(PROMPTS)
        ready = planner_stats(engine)["slots_ready"]
        engine.forget(connector=True)
        after = engine.generate(PROMPTS)
        engine.forget()
        last = engine.generate(PROMPTS)
        return {"ready": ready, "after": after, "last": last}


@pytest.mark.matrix
def test_a_reset_forgets_everything(scenarios: Scenarios, reference: Reference) -> None:
    options = EngineOptions(connector=L1)
    run = scenarios.run(_reset, options)
    assert run["ready"] > 0
    assert all(completion["cached_tokens"] == 0 for completion in run["after"])
    assert all(completion["cached_tokens"] == 256 for completion in run["last"])
    for answers in (run["after"], run["last"]):
        assert [completion["tokens"] for completion in answers] == reference(options, PROMPTS)


def _wishes(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats

    def ask(seed: int, **wishes: Any) -> int:
        (completion,) = engine.generate([prompt(seed, 300)], kv_transfer_params={"kvcache": wishes} if wishes else None)
        engine.forget()
        return completion.cached_tokens

    with Engine(options) as engine:
        out: dict[str, Any] = {}
        ask(1, skip_store=True)
        out["not stored"] = ask(1)
        out["not loaded"] = ask(1, skip_load=True)
        out["loaded"] = ask(1)
        out["capped load"] = ask(1, max_load_tokens=128)
        ask(2, max_store_tokens=128)
        out["capped store"] = ask(2, skip_store=True)
        ask(3, nonsense="x", max_load_tokens="many")
        out["nonsense"] = ask(3)
        return out | {"reasons": planner_stats(engine)}


def test_requests_can_opt_out(scenarios: Scenarios) -> None:
    run = scenarios.run(_wishes, EngineOptions(connector=L1))
    reasons = run.pop("reasons")
    expected = {
        "not stored": 0,
        "not loaded": 0,
        "loaded": 256,
        "capped load": 128,
        "capped store": 128,
        "nonsense": 256,
    }
    assert run == expected
    assert reasons["misses_opt_out"] == 1
    assert reasons["missed_tokens_opt_out"] == 300


def _seen_twice(options: EngineOptions) -> list[int]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        cached = []
        for _ in range(4):
            cached.append(engine.generate(PROMPTS[:1])[0].cached_tokens)
            engine.forget()
        return cached


def test_the_reuse_gate_stores_on_second_sight(scenarios: Scenarios) -> None:
    assert scenarios.run(_seen_twice, EngineOptions(connector=L1 | {"store_on_sight": 2})) == [0, 0, 256, 256]


def _answer_blocks(options: EngineOptions) -> list[int]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        (first,) = engine.generate([PROMPTS[0][:100]], tokens=200)
        engine.forget()
        (again,) = engine.generate([PROMPTS[0][:100] + first.tokens])
        return [first.cached_tokens, again.cached_tokens]


@pytest.mark.parametrize(("prompt_only", "cached"), [(False, 288), (True, 96)])
def test_answers_are_stored_unless_told_otherwise(scenarios: Scenarios, prompt_only: bool, cached: int) -> None:
    """A conversation goes on: the next prompt repeats the answer, whose blocks were filled token by token."""
    options = EngineOptions(connector=L1 | {"slot_blocks": 1, "prompt_only": prompt_only})
    assert scenarios.run(_answer_blocks, options) == [0, cached]


def _as_child(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        first = engine.generate(PROMPTS)
        engine.forget()
        again = engine.generate(PROMPTS)
        return {"first": first, "again": again, "hits": engine.external_hit_tokens()}


@pytest.mark.matrix
def test_as_a_child_of_multi_connector(scenarios: Scenarios, reference: Reference) -> None:
    child = {"kv_connector": "AIBrixOffloadingConnectorV1Type3", "kv_role": "kv_both", "kv_connector_extra_config": L1}
    options = EngineOptions(connector_name="MultiConnector", connector={"connectors": [child]})
    run = scenarios.run(_as_child, options)
    assert run["hits"] == 2 * 256
    assert [completion["tokens"] for completion in run["again"]] == reference(options, PROMPTS)


def _same_prompt_a_step_later(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import add, planner_stats, run

    with Engine(options) as engine:
        engine.generate([prompt(9, 40)])

        def add_second(steps: int) -> None:
            if steps == 1:
                add(engine, "second", PROMPTS[0])

        add(engine, "first", PROMPTS[0])
        return {"done": run(engine, add_second), "stats": planner_stats(engine)}


def test_a_request_waits_for_blocks_that_are_being_stored(scenarios: Scenarios, reference: Reference) -> None:
    """Without the engine's own cache, the second of two equal prompts asks again instead of computing everything."""
    throttled = L1 | {"slot_blocks": 1, "fill_wait_ms": 5000, "drill": "copy_bytes_per_s=3e7"}
    options = EngineOptions(connector=throttled, prefix_caching=False, step_tokens_max=512, requests_max=2)
    run = scenarios.run(_same_prompt_a_step_later, options)
    assert run["stats"]["hits"] == 1, "the second request has loaded what the first one stored"
    assert len(run["done"]) == 2
    (expected,) = reference(options, PROMPTS[:1])
    assert all(answer["tokens"] == expected for answer in run["done"].values())
