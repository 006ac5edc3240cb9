"""L2 with real engines: what one has computed another loads from a ring of servers, whatever happens to the servers."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cache_server import CacheServer
from tests.e2e.options import EngineOptions
from tests.e2e.proxy import Proxy
from tests.e2e.scenario import Scenarios
from tests.models import prompt

PROMPTS = [prompt(seed, 300) for seed in range(4)]
Reference = Callable[..., list[list[int]]]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[CacheServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(CacheServer(tmp_path / f"server-{number}.log")) for number in range(3)]


def _url(servers: list[CacheServer]) -> str:
    return "tcp://" + ",".join(server.address for server in servers)


def _options(remote: str, **connector: Any) -> EngineOptions:
    connector = {"capacity": "64MiB", "slot_blocks": 2, "weights_digest": "test", "remote": remote, **connector}
    return EngineOptions(connector=connector)


def _until_idle(engine: Any, deadline_s: float = 30.0) -> None:
    """Steps an engine without requests until everything that is to go to L2 is there."""
    from tests.e2e.inside import scheduler_side

    end = time.monotonic() + deadline_s
    while scheduler_side(engine).has_pending_work():
        assert time.monotonic() < end, "jobs do not end"
        engine.llm.llm_engine.step()
        time.sleep(0.001)


def _answer(options: EngineOptions, prompts: list[list[int]], tokens: int = 40) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats, store_stats

    with Engine(options) as engine:
        answers = engine.generate(prompts, tokens=tokens)
        _until_idle(engine)
        sources = {
            metric.labels.get("source", ""): getattr(metric, "value", 0)
            for metric in engine.llm.get_metrics()
            if "hits" in metric.name and "source" in metric.labels
        }
        return {
            "tokens": [answer.tokens for answer in answers],
            "reasons": [answer.finish_reason for answer in answers],
            "ttft_s": [answer.ttft_s for answer in answers],
            "hits": engine.external_hit_tokens(),
            "sources": sources,
            "planner": planner_stats(engine),
            "store": store_stats(engine),
        }


@pytest.mark.matrix
@pytest.mark.parametrize("load_mode", ["layerwise", "async"])
def test_an_engine_loads_what_another_has_computed(
    scenarios: Scenarios, reference: Reference, servers: list[CacheServer], load_mode: str
) -> None:
    # What is asked of the servers takes longer than usual on a machine that does other things as well.
    options = _options(_url(servers), load_mode=load_mode, remote_presence_wait_ms=5000)
    expected = reference(options, PROMPTS)
    first = scenarios.run(_answer, options, PROMPTS)
    assert first["tokens"] == expected
    assert first["planner"]["l2_demoted_blocks"] >= 4 * 4
    assert all(server.values() > 0 for server in servers), "blocks are spread over the ring"
    second = scenarios.run(_answer, options, PROMPTS)
    assert second["tokens"] == expected
    # Slots of 64 tokens: four whole ones of each prompt.
    assert second["hits"] == second["planner"]["l2_hit_tokens"] == 4 * 256
    assert second["store"]["l2_fetched_bytes"] > 0
    if second["sources"]:
        assert second["sources"]["external_unspecified"] == 4 * 256
    # Negative control: without the servers there is nothing to load, and nothing waits for long.
    for server in servers:
        server.kill()
    third = scenarios.run(_answer, options, PROMPTS)
    assert (third["tokens"], third["hits"]) == (expected, 0)


def test_hybrid_models_share_their_groups(
    scenarios: Scenarios, reference: Reference, servers: list[CacheServer]
) -> None:
    # Longer than usual, as above.
    connector = _options(_url(servers), remote_presence_wait_ms=5000).connector
    options = EngineOptions(model="hybrid", connector=connector)
    expected = reference(options, PROMPTS)
    assert scenarios.run(_answer, options, PROMPTS)["tokens"] == expected
    again = scenarios.run(_answer, options, PROMPTS)
    assert again["tokens"] == expected
    assert again["hits"] >= 4 * 128


def test_damaged_values_shorten_a_match_and_are_counted(
    scenarios: Scenarios, reference: Reference, servers: list[CacheServer]
) -> None:
    options = _options(_url(servers[:1]))
    expected = reference(options, PROMPTS)
    scenarios.run(_answer, options, PROMPTS)
    with Proxy(("127.0.0.1", servers[0].port)) as proxy:
        proxy.corrupt_every = 4096
        damaged = scenarios.run(_answer, _options(f"tcp://{proxy.address}", remote_presence_wait_ms=5000), PROMPTS)
        assert proxy.corrupted > 0
    assert damaged["tokens"] == expected
    assert damaged["hits"] < 4 * 256
    failures = sum(count for name, count in damaged["store"].items() if name.startswith("l2_failures_"))
    assert failures > 0
    assert damaged["planner"]["l2_failed_fetches"] > 0


def test_after_a_reset_an_engine_finds_nothing_of_before(
    scenarios: Scenarios, reference: Reference, servers: list[CacheServer]
) -> None:
    options = _options(_url(servers))
    expected = reference(options, PROMPTS)
    run = scenarios.run(_answer_reset_answer, options)
    assert run["tokens"] == [expected, expected]
    assert run["hits"] == [0, 0]


def _answer_reset_answer(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    hits, tokens = [], []
    with Engine(options) as engine:
        for _ in range(2):
            tokens.append([answer.tokens for answer in engine.generate(PROMPTS)])
            hits.append(engine.external_hit_tokens())
            _until_idle(engine)
            engine.forget(connector=True)
    return {"tokens": tokens, "hits": hits}


MANY = [prompt(100 + seed, 300) for seed in range(25)]
DEADLINE_S = 2.0


def _load_while_servers_fail(options: EngineOptions, pids: list[int], expected: list[list[int]]) -> dict[str, Any]:
    import os
    import signal
    import threading

    from tests.e2e.engine import Engine
    from tests.e2e.inside import Stalls, planner_stats, scheduler_side

    def fail() -> None:
        # When the first blocks have come, so that others are on their way.
        while planner_stats(engine)["l2_fetched_blocks"] < 8:
            time.sleep(0.005)
        os.kill(pids[0], signal.SIGKILL)
        os.kill(pids[1], signal.SIGSTOP)

    wrong, reasons = 0, set()
    with Engine(options) as engine:
        stalls = Stalls(scheduler_side(engine))
        accident = threading.Thread(target=fail, daemon=True)
        accident.start()
        for _ in range(4):
            # L1 is too small for all of them, so every round loads from the ring.
            answers = engine.generate(MANY, tokens=4)
            wrong += sum(answer.tokens != right for answer, right in zip(answers, expected, strict=True))
            reasons |= {answer.finish_reason for answer in answers}
            engine.forget()
        return {
            "wrong": wrong,
            "happened": not accident.is_alive(),
            "stalls_s": sorted(stalls.seconds.values()),
            "reasons": sorted(map(str, reasons)),
            "planner": planner_stats(engine),
        }


def test_servers_that_die_or_stop_under_load_cost_only_time(
    scenarios: Scenarios, reference: Reference, servers: list[CacheServer]
) -> None:
    options = _options(_url(servers), capacity="8MiB", remote_wait_ms=1000 * DEADLINE_S, remote_timeout_ms=1000)
    expected = reference(options, MANY, tokens=4)
    scenarios.run(_answer, _options(_url(servers)), MANY, 4)
    pids = [server.process.pid for server in servers[:2]]
    run = scenarios.run(_load_while_servers_fail, options, pids, expected)
    assert (run["wrong"], run["reasons"], run["happened"]) == (0, ["length"], True)
    assert run["planner"]["l2_hit_tokens"] > 0
    stalls = run["stalls_s"]
    assert len(stalls) == 100
    assert stalls[-1] < DEADLINE_S + 0.1, f"a request was told to wait {stalls[-1]} s after it came"


def test_a_ring_grows_under_an_engine(
    scenarios: Scenarios, reference: Reference, servers: list[CacheServer], tmp_path: Path
) -> None:
    members = tmp_path / "members.json"
    _write_members(members, servers)
    options = _options(f"file://{members}", capacity="8MiB")
    expected = reference(options, MANY, tokens=4)
    with CacheServer(tmp_path / "server-3.log") as fourth:
        run = scenarios.run(_grow, options, str(members), [one.address for one in [*servers, fourth]], expected)
        held = [server.values() for server in [*servers, fourth]]
    assert run["wrong"] == 0
    assert run["hits"][-1] > run["hits"][0]
    # About a quarter of what is stored now belongs to the new one; what moved was stored there again.
    assert 0.1 * held[0] < held[3] < sum(held[:3])


def _write_members(path: Path, servers: list[CacheServer]) -> None:
    _write_addresses(path, [server.address for server in servers])


def _write_addresses(path: Path, addresses: list[str]) -> None:
    nodes = [dict(zip(("addr", "port"), address.rsplit(":", 1), strict=True)) for address in addresses]
    for node in nodes:
        node["port"] = int(node["port"])  # type: ignore[assignment]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"nodes": nodes}))
    fresh.rename(path)


def _grow(options: EngineOptions, members: str, addresses: list[str], expected: list[list[int]]) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats

    wrong, hits = 0, []
    with Engine(options) as engine:
        for round_number in range(4):
            if round_number == 2:
                _write_addresses(Path(members), addresses)
                time.sleep(2.5)
            answers = engine.generate(MANY, tokens=4)
            wrong += sum(answer.tokens != right for answer, right in zip(answers, expected, strict=True))
            hits.append(planner_stats(engine)["l2_hit_tokens"])
            _until_idle(engine)
            engine.forget()
    return {"wrong": wrong, "hits": hits}
