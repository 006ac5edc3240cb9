"""Servers that a network takes away and gives back, each in a network namespace of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cache_server import CacheServer
from tests.faults.namespaces import Cable, Namespace, unavailable
from tests.faults.ring_load import Report, RingLoad, breaker, done, failed

pytestmark = pytest.mark.slow

PORT = 12345


@dataclass
class Network:
    """A client's namespace, and three servers at the ends of its cables."""

    client: Namespace
    cables: list[Cable]
    servers: list[CacheServer]
    folder: Path

    @property
    def remote(self) -> str:
        """The ring."""
        return "tcp://" + ",".join(server.address for server in self.servers)

    def load(self, **flags: int) -> RingLoad:
        """A client on the ring, not at full rate: who waits for whom is to be seen, not who is fastest."""
        return RingLoad(
            self.remote, self.folder / "load.log", within=self.client.within, **{"rate": 400, "values": 200, **flags}
        )


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    if why := unavailable():
        pytest.skip(why)
    with ExitStack() as stack:
        client = stack.enter_context(Namespace())
        cables = [Cable(number, client, stack.enter_context(Namespace())) for number in range(3)]
        servers = [
            stack.enter_context(
                CacheServer(
                    tmp_path / f"server-{number}.log",
                    host=cable.server_address,
                    port=PORT,
                    within=cable.server.within,
                )
            )
            for number, cable in enumerate(cables)
        ]
        yield Network(client, cables, servers, tmp_path)


Change = Callable[[Cable], None]

FAULTS: dict[str, tuple[Change, Change]] = {
    "link_down": (Cable.unplug, Cable.plug_in),
    "answers_lost": (Cable.lose_answers, Cable.find_answers),
    "requests_lost": (Cable.lose_requests, Cable.find_requests),
}


def _is_well(report: Report) -> bool:
    return all(server["breaker"] == "closed" for server in report["servers"].values())


def _all_moved(before: Report, count: int) -> Callable[[Report], bool]:
    """Whether each server has moved so many values more."""
    return lambda report: all(done(report, server) - done(before, server) >= count for server in before["servers"])


@pytest.mark.parametrize("fault", FAULTS)
def test_one_server_is_cut_off_for_some_seconds(network: Network, fault: str) -> None:
    harm, heal = FAULTS[fault]
    lost, others = network.servers[0].address, [server.address for server in network.servers[1:]]
    with network.load() as load:
        load.until("servers are filled", lambda report: report["get"]["done"] > 200)
        for _ in range(2):
            before = load.last()
            harm(network.cables[0])
            load.until("its breaker opens", lambda report: breaker(report, lost) == "open")
            opened = load.last()
            cut_off = load.during(4.0)
            # It fails, and the others' traffic goes on as if nothing were.
            assert failed(cut_off[-1]) > failed(before)
            assert done(cut_off[-1], lost) == done(opened, lost)
            for other in others:
                assert done(cut_off[-1], other) - done(opened, other) > 100
                assert {breaker(report, other) for report in cut_off} == {"closed"}
            # Once it is known to be away, and what had begun has ended, nobody waits for it: a transfer fails at once.
            known = next(report for report in cut_off if report["time_s"] > opened["time_s"] + load.patience_s + 1.0)
            assert failed(cut_off[-1], "timed_out") == failed(known, "timed_out")
            assert failed(cut_off[-1], "unreachable") > failed(known, "unreachable")
            heal(network.cables[0])
            load.until("its breaker closes", _is_well)
            load.until("all servers are in use again", _all_moved(load.last(), 100))
        end = load.end()
        for report in load.reports:
            load.check(report)
    # What it had stored is there: nobody took it away while it could not be reached.
    assert end["get"]["done"] > end["get"]["missing"]
    assert [end["servers"][other]["opened"] for other in others] == [0, 0]


def test_a_cut_shorter_than_the_patience_costs_nothing_but_time(network: Network) -> None:
    with network.load(silence_ms=5000, patience_ms=8000) as load:
        load.until("servers are filled", lambda report: report["get"]["done"] > 200)
        before = load.last()
        network.cables[0].unplug()
        load.during(1.0)
        network.cables[0].plug_in()
        load.until("all servers are in use again", _all_moved(load.last(), 100))
        end = load.end()
        load.check(end)
    assert failed(end) == failed(before) == 0


def test_all_servers_are_cut_off(network: Network) -> None:
    with network.load() as load:
        load.until("servers are filled", lambda report: report["get"]["done"] > 200)
        for cable in network.cables:
            cable.unplug()
        load.until(
            "all breakers open",
            lambda report: not any(server["breaker"] == "closed" for server in report["servers"].values()),
        )
        alone = load.during(2.0)
        assert done(alone[-1]) == done(alone[0])
        assert failed(alone[-1], "unreachable") > failed(alone[0], "unreachable")
        for cable in network.cables:
            cable.plug_in()
        load.until("all breakers close", _is_well)
        load.until("all servers are in use again", _all_moved(load.last(), 100))
        load.check(load.end())


def test_replicas_hide_a_cut(network: Network) -> None:
    lost = network.servers[0].address
    with network.load(replicas=2, puts_per_cent=50) as load:
        load.until("every value is stored", lambda report: report["put"]["done"] > 2000)
        network.cables[0].unplug()
        load.until("its breaker opens", lambda report: breaker(report, lost) == "open")
        # Gets that had begun may still fail; those that begin now find the other replica.
        load.during(load.patience_s + 1.0)
        opened = load.last()
        cut_off = load.during(3.0)[-1]
        assert cut_off["get"]["done"] > opened["get"]["done"] + 200
        assert cut_off["get"]["failed"] == opened["get"]["failed"]
        network.cables[0].plug_in()
        load.until("its breaker closes", _is_well)
        load.check(load.end())
