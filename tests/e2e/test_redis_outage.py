"""An engine that takes the members of its ring from Redis, while Redis is away for a minute."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cache_server import CacheServer
from tests.e2e.conftest import Reference
from tests.e2e.fake_redis import FakeRedis
from tests.e2e.options import EngineOptions
from tests.e2e.scenario import Scenarios
from tests.models import prompt

pytestmark = pytest.mark.slow

PROMPTS = [prompt(300 + seed, 300) for seed in range(25)]
AT_ONCE = 4
"""As many as may have their blocks fetched at once: a quarter of L1's slots."""
HIT_TOKENS = len(PROMPTS) * 256
AWAY_S = 60.0
WAIT_S = 2.0


def _answer_until_redis_is_back(options: EngineOptions, phase: str, expected: list[list[int]]) -> dict[str, Any]:
    """Answers the prompts round after round, each time from L2: neither the engine nor L1 has kept all."""
    from tests.e2e.engine import Engine
    from tests.e2e.inside import Stalls, planner_stats, scheduler_side, settle

    rounds: list[dict[str, Any]] = []
    with Engine(options) as engine:
        stalls = Stalls(scheduler_side(engine))
        while sum(one["phase"] == "back" for one in rounds) < 3:
            now = Path(phase).read_text()
            before = engine.external_hit_tokens(), planner_stats(engine)["l2_hit_tokens"]
            answers = []
            for first in range(0, len(PROMPTS), AT_ONCE):
                answers += engine.generate(PROMPTS[first : first + AT_ONCE], tokens=4)
            wrong = sum(answer.tokens != right for answer, right in zip(answers, expected, strict=True))
            hits = engine.external_hit_tokens() - before[0]
            of_l2 = planner_stats(engine)["l2_hit_tokens"] - before[1]
            if Path(phase).read_text() == now:
                rounds.append({"phase": now, "wrong": wrong, "hits": hits, "of_l2": of_l2})
            settle(engine)
            engine.forget()
            if now == "before" and sum(one["phase"] == "before" for one in rounds) == 4:
                Path(phase).write_text("warm")
        return {"rounds": rounds, "stalls_s": sorted(stalls.seconds.values())}


def _take_redis_away(redis: FakeRedis, phase: Path, addresses: list[str]) -> None:
    while phase.read_text() != "warm":
        time.sleep(0.02)
    redis.go_down()
    phase.write_text("away")
    time.sleep(AWAY_S / 2)
    # It takes connections again and hangs.
    redis.is_silent = True
    redis.publish(addresses)
    redis.come_up()
    time.sleep(AWAY_S / 2)
    seen = redis.gets
    redis.is_silent = False
    # Both sides of the engine ask for themselves.
    while redis.gets < seen + 2:
        time.sleep(0.1)
    phase.write_text("back")


def test_redis_is_away_for_a_minute(scenarios: Scenarios, reference: Reference, tmp_path: Path) -> None:
    phase = tmp_path / "phase"
    phase.write_text("before")
    with ExitStack() as stack:
        servers = [stack.enter_context(CacheServer(tmp_path / f"server-{number}.log")) for number in range(4)]
        addresses = [server.address for server in servers]
        redis = stack.enter_context(FakeRedis(addresses[:3]))
        connector = {
            "capacity": "8MiB",
            "slot_blocks": 2,
            "weights_digest": "test",
            "remote": redis.url,
            # Long, so that on a busy machine nothing is a miss for want of time.
            "remote_presence_wait_ms": 1000 * WAIT_S,
            "remote_wait_ms": 1000 * WAIT_S,
        }
        options = EngineOptions(connector=connector)
        expected = reference(options, PROMPTS, tokens=4)
        threading.Thread(target=_take_redis_away, args=(redis, phase, addresses), daemon=True).start()
        run = scenarios.run(_answer_until_redis_is_back, options, str(phase), expected, timeout_s=AWAY_S + 120)
        held = [server.values() for server in servers]
    rounds = run["rounds"]
    print(f"rounds: {rounds}; values held: {held}; longest stall {run['stalls_s'][-1]:.3f} s")
    assert not any(one["wrong"] for one in rounds)
    assert run["stalls_s"][-1] < WAIT_S + 0.1
    # Hits go on as if nothing were: nearly everything is found, in L1 or in L2.
    away = [one for one in rounds if one["phase"] == "away"]
    assert len(away) > 3
    assert rounds[0]["hits"] == 0
    assert min(one["hits"] for one in rounds[1:] if one["phase"] != "back") > 0.9 * HIT_TOKENS
    assert min(one["of_l2"] for one in away) > 0
    # The list that was published meanwhile was taken.
    assert held[3] > 0
