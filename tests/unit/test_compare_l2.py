"""The L2 parts of the side-by-side comparison: small programs in the place of the sides, and our own sides for real."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benches.compare import l1, l2_files, l2_rdma, l2_tcp, our_l2
from benches.compare.side import Side, SideError
from benches.compare.side_program import Blocks
from benches.machine import ROOT
from tests.e2e.cache_server import tool
from tests.unit.test_compare import ANSWERS, OPENED

CASE = l2_tcp.Case(64 << 10, 32)

HOME = "{'address': 'somewhere'}"
CLIENT = "{{'version': '1.2', 'us': {{'put': {0}}} if question['do'] == 'put' else {{'exists': {0}, 'get': {0}}}}}"


def tcp_starter(**clients: str) -> l2_tcp.Start:
    """Sides whose clients answer so; those that are not named take 10 us."""

    def start(name: str, role: str) -> Side:
        answer = HOME if role == "home" else clients.get(name, CLIENT.format(10))
        return Side(f"{name} {role}", [sys.executable, "-c", ANSWERS.replace("{answer}", answer)])

    return start


def test_every_verb_is_a_row_with_the_plain_sockets_beside() -> None:
    ours = CLIENT.format("5 if question.get('number') else 9999")
    start = tcp_starter(ours=ours, mooncake=CLIENT.format(20))
    rows, versions = l2_tcp.compare(start, 4, "no tool", cases=(CASE,))
    assert versions == {"ours": "1.2", "mooncake": "1.2", "plain": "1.2"}
    over = "time of ours to that of Mooncake Store over TCP, 32 values of 64 KiB"
    assert [one.what for one in rows] == [f"{verb}: {over}" for verb in ("put", "exists", "get")]
    assert [(one.reached, one.met) for one in rows] == [("0.25", True)] * 3
    assert rows[0].details["ours_to_plain"]["median"] == 0.5
    assert rows[0].details["ours_us"]["samples"] == 4


WRONG = "{'error': 'the bytes of round 1 came back wrong'} if question['do'] == 'get' else " + CLIENT.format(1)
HANGS = "__import__('time').sleep(600) if question['do'] == 'put' else {'version': '1'}"
DIES = "sys.exit('out of memory') if question['do'] == 'put' else {'version': '1'}"


@pytest.mark.parametrize(
    ("program", "timeout_s", "said"),
    [
        (WRONG, 60.0, "mooncake client: the bytes of round 1 came back wrong"),
        (HANGS, 3.0, "mooncake client: no answer within 3 s"),
        (DIES, 60.0, "mooncake client: has ended: status 1; out of memory"),
    ],
)
def test_a_side_that_fails_is_a_row_and_the_other_cases_go_on(
    program: str, timeout_s: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(l2_tcp, "ASK_TIMEOUT_S", timeout_s)
    fails_at_32 = f"({program}) if question['count'] == 32 else ({CLIENT.format(1)})"
    cases = (CASE, l2_tcp.Case(64 << 10, 1))
    rows, _ = l2_tcp.compare(tcp_starter(mooncake=fails_at_32), 1, "no tool", cases=cases)
    assert (rows[0].reached, rows[0].spread) == ("**could not be measured**", said)
    assert [one.reached for one in rows[1:]] == ["10", "10", "10"]


@pytest.mark.parametrize("name", ["ours", "plain"])
def test_what_one_process_puts_another_gets(name: str) -> None:
    program = [sys.executable, *l2_tcp.PROGRAM, name]
    with (
        Side("home", [*program, "home"], cwd=ROOT) as home,
        Side("putting", [*program, "client"], cwd=ROOT) as putting,
        Side("getting", [*program, "client"], cwd=ROOT) as getting,
    ):
        address = home.ask(60, do="open", capacity_bytes=64 << 20, tool=str(tool()))["address"]
        for client in (putting, getting):
            assert client.ask(60, do="open", address=address, value_bytes=64 << 10, count=32)["version"]
        for number, count in ((1, 32), (2, 1)):
            assert set(putting.ask(60, do="put", number=number, count=count)["us"]) == {"put"}
            assert set(getting.ask(60, do="get", number=number, count=count)["us"]) == {"exists", "get"}
            assert putting.ask(60, do="forget", number=number, count=count) == {}
        # What nobody has put is found out: there is nothing, or there are the bytes of another round.
        with pytest.raises(SideError, match=r"exists answered 0 of 32|the bytes of round 3 came back wrong"):
            getting.ask(60, do="get", number=3, count=32)


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "kvcache"
    broken.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    broken.chmod(0o755)
    with (
        Side("home", [sys.executable, *l2_tcp.PROGRAM, "ours", "home"], cwd=ROOT) as home,
        pytest.raises(SideError, match="kvcache serve has ended with 1"),
    ):
        home.ask(60, do="open", capacity_bytes=1 << 20, tool=str(broken))


def test_a_server_ends_with_the_process_that_started_it() -> None:
    program = "from benches.compare.our_l2 import spawn; print(spawn(['sleep', '600']).pid, flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as home:
        assert home.stdout is not None
        server = int(home.stdout.readline())
        assert Path(f"/proc/{server}").exists()
        home.kill()
    assert gone(server)


def test_a_server_whose_starter_has_ended_already_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert our_l2.spawn(["sleep", "600"]).wait(timeout=30) == 1


def gone(process: int) -> bool:
    """Whether a process ends soon; one that nobody waits for stays as a zombie."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_one_wrong_byte_is_found() -> None:
    blocks = Blocks(4, 4096)
    out = blocks.of(7, 4).copy()
    blocks.check(7, 4, out)
    with pytest.raises(RuntimeError, match="round 8"):
        blocks.check(8, 4, out)
    out[4 * 4096 - 1] ^= 1
    with pytest.raises(RuntimeError, match="the bytes of round 7 came back wrong"):
        blocks.check(7, 4, out)


def test_both_file_backends_are_compared_and_their_folder_is_removed() -> None:
    places: list[Path] = []

    def start(name: str, place: Path) -> Side:
        places.append(place)
        us = {"ours-tcp": 4, "ours-shared": 1, "ROCKSDB": 8, "SHFS": 2}[name]
        answer = OPENED + f"{{'us': {{'get': {us}}}}}"
        return Side(name, [sys.executable, "-c", ANSWERS.replace("{answer}", answer)])

    cases = (l1.Case(32 << 10, 512, 1),)
    ways: l2_files.Ways = {name: (way, cases) for name, (way, _) in l2_files.WAYS.items()}
    rows, versions = l2_files.compare("aibrix-kvcache", start, 2, ways)
    asked = "get: time of ours to that of aibrix-kvcache {}, 512 tokens, blocks of 32 KiB, one thread"
    assert [(one.what, one.reached, one.met) for one in rows] == [
        (asked.format("ROCKSDB (ours over TCP)"), "0.5", True),
        (asked.format("ROCKSDB (ours through shared memory)"), "0.125", True),
        (asked.format("SHFS (ours over TCP)"), "2", False),
        (asked.format("SHFS (ours through shared memory)"), "0.5", True),
    ]
    assert set(versions) == {"ours", "aibrix-kvcache", "files on"}
    assert len({place.name for place in places}) == 4
    assert not any(place.parent.exists() for place in places)


def test_a_file_system_has_a_name() -> None:
    assert l2_files.file_system(Path("/proc/self")) == "proc"


@pytest.mark.parametrize("name", list(l2_files.WAYS))
def test_our_side_beside_file_backends_has_everything_in_l2(name: str) -> None:
    with Side("ours", [sys.executable, *l2_files.PROGRAM, name, tool()], cwd=ROOT) as ours:
        ours.ask(60, do="open", block_bytes=32 << 10, capacity_bytes=64 << 20, threads=1, blocks=32)
        for number in range(3):
            us = ours.ask(60, do="verbs", number=number, blocks=32)["us"]
            assert set(us) == {"put", "exists", "get", "miss", "copy"}


def results(factor: float) -> dict[str, Any]:
    """What the guest writes; ours has `factor` times the rates."""
    shapes = {
        "small": {"bytes": 4096, "keys": 1, "in_flight": 61, "repeats": 10},
        "large": {"bytes": 65536, "keys": 32, "in_flight": 4, "repeats": 2},
    }
    rates = []
    for who in {name for pair in l2_rdma.PAIRS for name in pair}:
        for op in ("put", "get"):
            mine = 1.0 if who == "stock client, stock server" else factor
            small = "values/s in batches" if "ring" in who else "requests/s"
            rates.append({"who": who, "op": op, "unit": small, "values": [1000 * mine, 1000 * mine]})
            rates.append({"who": who, "op": op, "unit": "MB/s", "values": [2097152 * mine, 2097152 * mine]})
    return {"rounds": 2, "shapes": shapes, "rates": rates, "ratios": []}


def guest(tmp_path: Path, script: str) -> list[str | os.PathLike[str]]:
    """A command in the place of the guest's: the results' file is `$2`."""
    program = tmp_path / "guest.sh"
    program.write_text(f"set -e\n{script}\n")
    return ["bash", program]


def test_the_rates_of_the_guest_become_rows(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results(4.0)))
    command = guest(tmp_path, f'[ "$1" = --bench ] && [ "$RDMA_BENCH_ROUNDS" = 2 ] && cp {tmp_path}/results.json "$2"')
    rows = l2_rdma.compare(command, 2, 60, tmp_path)
    assert len(rows) == len(l2_rdma.PAIRS) * 4
    assert {(one.reached, one.met) for one in rows} == {("0.25", True)}
    assert rows[0].what == (
        "put over soft RoCE: time of our client, stock server, to stock client, stock server: "
        "4 KiB, 61 requests in flight"
    )
    # A thousand values a second, or 32 values of 64 KiB, which are 2 MiB, at 2 MiB a second.
    assert [one.details["theirs_us"]["median"] for one in rows[:2]] == [1000.0, 1e6]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'infinistore-guest: SKIPPED, nothing was tested: InfiniStore cannot be had'; exit 0", "cannot be had"),
        ("echo 'no | kernel'; exit 7", "has ended: status 7; no / kernel"),
        ("exit 0", "results that cannot be read: FileNotFoundError"),
        ("echo '[]' >\"$2\"", "results that cannot be read: TypeError"),
        ('echo \'{"shapes": {}}\' >"$2"', "results that cannot be read: KeyError"),
    ],
)
def test_a_guest_that_brings_nothing_is_an_error(script: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SideError, match=said):
        l2_rdma.compare(guest(tmp_path, script), 2, 60, tmp_path)


def test_a_guest_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    hangs = f"trap 'touch {tmp_path}/cleaned' EXIT; timeout 600 sleep 601 & echo $! >{tmp_path}/id; sleep 600"
    with pytest.raises(SideError, match="not done within 5 s"):
        l2_rdma.compare(guest(tmp_path, hangs), 2, 5, tmp_path)
    assert gone(int((tmp_path / "id").read_text()))
    assert (tmp_path / "cleaned").exists()


def test_what_ignores_a_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l2_rdma, "TERMINATE_S", 0.2)
    stubborn = f"trap '' TERM; echo $$ >{tmp_path}/id; while true; do sleep 0.1; done"
    with pytest.raises(SideError, match="not done within 3 s"):
        l2_rdma.compare(guest(tmp_path, stubborn), 2, 3, tmp_path)
    assert gone(int((tmp_path / "id").read_text()))
