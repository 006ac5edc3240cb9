"""Redis, which says who the servers are, goes away for a minute: nobody waits for it."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.cache_server import CacheServer
from tests.e2e.fake_redis import FakeRedis
from tests.faults.ring_load import RingLoad, done, failed

pytestmark = pytest.mark.slow


def test_redis_is_away_for_a_minute_under_load(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(CacheServer(tmp_path / f"server-{number}.log")) for number in range(4)]
        addresses = [server.address for server in servers]
        redis = stack.enter_context(FakeRedis(addresses[:3]))
        # All values are put before it goes away, so that every get after it is a hit, and a miss would show.
        load = stack.enter_context(RingLoad(redis.url, tmp_path / "load.log", rate=400, values=100, puts_per_cent=20))
        load.until("every value is stored", lambda report: report["put"]["done"] > 2000)
        before = load.last()
        assert before["members"]["generation"] == 1
        redis.go_down()
        # Connections are refused for half a minute; then they are made, and nothing is answered.
        refused = load.during(30.0)
        assert refused[-1]["members"]["failures"] > before["members"]["failures"]
        redis.is_silent = True
        redis.publish(addresses)
        redis.come_up()
        silent = load.during(30.0)
        assert silent[-1]["members"]["failures"] > refused[-1]["members"]["failures"]
        for away in (refused, silent):
            assert done(away[-1]) - done(away[0]) > 0.5 * 400 * 29, "its rate is about what it was"
        after = silent[-1]
        assert failed(after) == failed(before)
        assert after["get"]["missing"] == before["get"]["missing"]
        assert after["members"]["generation"] == 1
        # Back, with one server more, which gets its share.
        redis.is_silent = False
        load.until("the new list is taken", lambda report: report["members"]["generation"] == 2)
        new = addresses[3]
        load.until("the new server is used", lambda report: new in report["servers"] and done(report, new) > 100)
        load.check(load.end())
    assert redis.gets > 1
