"""A ring behind networks that delay, stall, reorder, damage and cut: costs are counted, bytes are right."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cache_server import CacheServer
from tests.faults.harmful_proxy import Counts, Harm, HarmfulProxy
from tests.faults.ring_load import Report, RingLoad, breaker, done, failed

pytestmark = pytest.mark.slow

Ring = list[HarmfulProxy]


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    """Proxies, each before a server of its own."""
    with ExitStack() as stack:
        servers = [stack.enter_context(CacheServer(tmp_path / f"server-{number}.log")) for number in range(3)]
        yield [stack.enter_context(HarmfulProxy(one.address, seed=seed)) for seed, one in enumerate(servers)]


def _load(ring: Ring, log: Path, **flags: Any) -> RingLoad:
    remote = "tcp://" + ",".join(proxy.address for proxy in ring)
    return RingLoad(remote, log, **dict[str, Any]({"rate": 400, "values": 200, **flags}))


HARMS: dict[str, tuple[Harm, Callable[[Counts, Report], bool]]] = {
    "delay": (Harm(delay_s=0.05), lambda counts, report: failed(report) == 0),
    "reordering": (
        Harm(jitter_s=0.03, stall_chance=0.01, stall_s=0.2),
        lambda counts, report: counts.stalled > 0 and failed(report) == 0,
    ),
    "loss": (Harm(stall_chance=0.05, stall_s=2.0), lambda counts, report: counts.stalled > 0 and failed(report) > 0),
    "corruption": (
        Harm(corrupt_chance=0.02),
        lambda counts, report: counts.corrupted > 0 and failed(report) > 0,
    ),
    "cuts": (Harm(cut_chance=0.01), lambda counts, report: counts.cut > 0 and failed(report) > 0),
    "everything": (
        Harm(0.005, 0.02, stall_chance=0.005, stall_s=1.5, corrupt_chance=0.005, cut_chance=0.005),
        lambda counts, report: min(counts.stalled, counts.corrupted, counts.cut) > 0 and failed(report) > 0,
    ),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_bad_network_to_all_servers(ring: Ring, tmp_path: Path, name: str) -> None:
    harm, has_happened = HARMS[name]
    with _load(ring, tmp_path / "load.log") as load:
        load.until("servers are filled", lambda report: report["get"]["done"] > 200)
        before = load.last()
        for proxy in ring:
            proxy.harm = harm
        load.during(5.0)
        harmed = load.last()
        for proxy in ring:
            proxy.harm = Harm()
        assert all(has_happened(proxy.counts, harmed) for proxy in ring), [proxy.counts for proxy in ring]
        assert done(harmed) > done(before), "some of it comes through"
        load.until("recovery", lambda report: all(breaker(report, proxy.address) == "closed" for proxy in ring))
        well = load.last()
        load.until(
            "all servers are in use again",
            lambda report: all(done(report, one.address) - done(well, one.address) > 50 for one in ring),
        )
        load.check(load.end())


def test_a_bad_network_to_one_server_harms_no_other(ring: Ring, tmp_path: Path) -> None:
    bad, good = ring[0].address, [proxy.address for proxy in ring[1:]]
    with _load(ring, tmp_path / "load.log") as load:
        load.until("servers are filled", lambda report: report["get"]["done"] > 200)
        before = load.last()
        ring[0].harm = Harm(corrupt_chance=0.1, cut_chance=0.05, stall_chance=0.05, stall_s=2.0)
        load.during(5.0)
        after = load.last()
        assert sum(after["servers"][bad]["faults"].values()) > sum(before["servers"][bad]["faults"].values())
        for one in good:
            assert done(after, one) - done(before, one) > 200
            assert after["servers"][one]["faults"] == before["servers"][one]["faults"]
            assert after["servers"][one]["opened"] == 0
        load.check(load.end())
