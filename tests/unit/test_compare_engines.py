"""The comparison of engines, with small programs in the place of engines and servers."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from benches.compare import engines, processes
from benches.compare.engines_side import last_line
from benches.compare.lmcache_server import LmcacheServer, free_ports, remove_shared_memory
from benches.compare.side import Side, SideError
from benches.engine.sides import SideFailed
from benches.rows import Row

CASE = engines.Case("tiny", 513, 2, 3)

# What an engine does that has computed these prompts: finds them whole, or the half that they share.
ENGINE = """
import json, sys
name, first_s, twist = sys.argv[1], float(sys.argv[2]), sys.argv[3]
seen, starts = [], 0
for line in sys.stdin:
    question = json.loads(line)
    do, ids = question["do"], question.get("ids", [])
    answer = {}
    if do == "start":
        seen, starts = [], starts + 1
        answer = {"version": "1.2"}
    elif do == "costs":
        answer = {"memory_bytes": (2 if name == "none" else 3) << 20, "idle_cpu_s": 0.01}
    elif do == "request":
        half = (len(ids) - 1) // 2
        found = [len(ids) - 1 if other == ids else half if other[:half] == ids[:half] else 0 for other in seen]
        cached = max([0, *found]) if name != "none" or not question["forget"] else 0
        seen.append(ids)
        # The first round after a start takes ten times as long.
        slow = 10 if len(seen) <= 3 else 1
        answer = {"first_s": slow * first_s, "whole_s": 2 * slow * first_s, "cpu_s": slow * first_s / 4}
        answer |= {"cached": cached, "tokens": ids[:8]}
    exec(twist)
    print(json.dumps(answer), flush=True)
"""


def starter(**twists: str) -> engines.Start:
    first_s = {"none": "0.4", "ours": "0.1", "lmcache": "0.2"}
    return lambda name: Side(name, [sys.executable, "-c", ENGINE, name, first_s[name], twists.get(name, "")])


def compared(case: engines.Case = CASE, absent: dict[str, SideError] | None = None, **twists: str) -> dict[str, Row]:
    rows, _ = engines.compare(starter(**twists), [case], absent or {})
    return {one.what: one for one in rows}


def time_of(one: str, other: str, share: int, when: str) -> str:
    return f"TTFT of {one} to {other}, tiny, 513 tokens, {share} % hits, {when}"


def errors(rows: dict[str, Row]) -> dict[str, str]:
    return {what: one.details["error"] for what, one in rows.items() if "error" in one.details}


def test_every_share_is_compared_cold_and_warm(capsys: pytest.CaptureFixture[str]) -> None:
    rows = compared()
    assert errors(rows) == {}
    for share in (0, 50, 100):
        for when, rounds in (("cold", 2), ("warm", 6)):
            for one, other, ratio in (
                ("ours", "no connector", 0.25),
                ("LMCache MP", "no connector", 0.5),
                ("ours", "LMCache MP", 0.5),
            ):
                details = rows[time_of(one, other, share, when)].details
                assert details["ratio"] == {"median": ratio, "low": ratio, "high": ratio, "samples": rounds}
                assert details["covered_tokens"] == 512 * share // 100
    details = rows[time_of("ours", "no connector", 100, "cold")].details
    assert (details["first_s_1"]["median"], details["whole_s_1"]["median"], details["cpu_s_2"]["median"]) == (1, 2, 1)
    assert time_of("ours", "a hit of vLLM's own cache", 100, "warm") in rows
    assert len(rows) == 3 * 2 * 3 + 1 + 2
    assert "2 of 2 starts" in capsys.readouterr().out


def test_only_ours_has_targets_and_only_with_rounds_enough() -> None:
    rows = compared()
    met = {what: one.met for what, one in rows.items() if one.target}
    assert set(met) == {time_of("ours", "LMCache MP", share, when) for share in (0, 50, 100) for when in WHEN} | {
        time_of("ours", "no connector", share, when) for share in (50, 100) for when in WHEN
    }
    assert {what: met[what] for what in met if what.endswith("cold")} == dict.fromkeys(
        (what for what in met if what.endswith("cold")), None
    )
    assert all(met[what] for what in met if what.endswith("warm"))
    slower = compared(ours="answer['first_s'] = 9 if do == 'request' else 0")
    assert slower[time_of("ours", "LMCache MP", 50, "warm")].met is False


WHEN = ("cold", "warm")


def test_memory_is_what_the_engine_without_a_connector_does_not_have() -> None:
    row = compared()["memory of LMCache MP beyond no connector, tiny, 513 tokens, at the end"]
    assert row.reached == "1 MiB"
    assert "idle 0.50 % of a core" in row.spread


@pytest.mark.parametrize(
    ("twist", "error"),
    [
        ("if do == 'request': answer['cached'] //= 2", "lmcache: found 128 instead of 256 of 513 tokens"),
        ("if do == 'request' and answer['cached']: answer['tokens'] = [7]", r"generated \[7\] instead of \[\d+, .*256"),
        ("if do == 'start': answer = {'error': 'cannot register'}", "lmcache: cannot register"),
        ("if do == 'request': sys.exit('out of memory')", "has ended: status 1; out of memory"),
        ("if do == 'stop' or starts == 2: answer = {'error': 'is gone'}", "lmcache: is gone"),
    ],
)
def test_a_peer_that_fails_is_a_row_and_the_others_go_on(twist: str, error: str) -> None:
    rows = compared(lmcache=twist)
    (failed,) = errors(rows)
    assert failed == "engine: lmcache, tiny, 513 tokens"
    assert pytest.RaisesExc(SideError, match=error).matches(SideError(rows[failed].details["error"]))
    assert rows[time_of("ours", "no connector", 50, "warm")].details["ratio"]["samples"] == 6


def test_a_peer_that_failed_is_asked_again_in_the_next_case() -> None:
    twist = "if do == 'request' and len(ids) == 513: answer = {'error': 'no'}"
    rows, versions = engines.compare(starter(lmcache=twist), [CASE, engines.Case("tiny", 1_025, 1, 6)], {})
    assert errors({one.what: one for one in rows}) == {"engine: lmcache, tiny, 513 tokens": "lmcache: no"}
    assert [one for one in rows if one.what.startswith("TTFT of LMCache MP to no connector, tiny, 1,025")]
    assert list(versions) == ["lmcache", "ours", "none"]


def test_an_engine_that_finds_tokens_without_a_connector_is_no_baseline() -> None:
    rows = compared(none="if do == 'request' and question['forget'] and len(seen) > 1: answer['cached'] = 16")
    assert errors(rows) == {"engine: none, tiny, 513 tokens": "none: found 16 instead of 0 of 513 tokens"}
    # What was measured before is kept, and ours and LMCache's are compared on.
    assert rows[time_of("ours", "LMCache MP", 100, "warm")].details["ratio"]["samples"] == 6


def test_a_peer_that_cannot_be_installed_is_a_row() -> None:
    rows = compared(absent={"lmcache": SideError("lmcache: cannot be installed: no network")})
    assert errors(rows) == {"engine: lmcache": "lmcache: cannot be installed: no network"}
    assert not [what for what in rows if "LMCache MP" in what]
    assert rows[time_of("ours", "no connector", 100, "warm")].reached == "0.25"


def test_prompts_of_a_round_share_what_they_should() -> None:
    (_, new), (_, half), (_, again) = engines.prompts(CASE, 3)
    assert again == new
    assert half[:256] == new[:256]
    assert half[256:384] != new[256:384]
    assert len(half) == len(new) == 513
    assert engines.prompts(CASE, 4)[0][1][:16] != new[:16]


def test_an_engine_has_room_for_prompt_and_answer_and_little_more() -> None:
    assert [engines.Case("tiny", tokens, 1, 1).tokens_max for tokens in (1_016, 1_017)] == [1_024, 1_152]


def test_cases_are_whole_blocks_and_whole_chunks() -> None:
    for case in (*engines.FULL, *engines.QUICK):
        assert case.covered(50) % 256 == 0
        assert case.covered(100) == case.tokens - 1


def test_closing_a_side_ends_what_it_has_started() -> None:
    program = "import os, subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)"
    with Side("peer", [sys.executable, "-c", f"{program}; input()"]) as peer:
        process_id = int(peer._line(time.monotonic() + 20, 20))
    until = time.monotonic() + 20
    while running(process_id):
        assert time.monotonic() < until, "the helper outlived its side"
        time.sleep(0.01)


def running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    # What nobody has waited for yet has ended as well.
    return state != "Z"


def test_processor_time_of_a_process_has_its_threads() -> None:
    busy = """
    import threading, time
    def work():
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    print("done", flush=True)
    input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        alone = processes.cpu_seconds([process.pid])
        assert alone >= 0.2
        assert processes.cpu_seconds([process.pid, os.getpid()]) > alone
        process.communicate(b"\n")
    with pytest.raises(ProcessLookupError, match=f"process {process.pid}"):
        processes.cpu_seconds([process.pid])
    with pytest.raises(ProcessLookupError, match=f"process {process.pid}"):
        processes.memory_bytes([process.pid])


def test_memory_that_processes_share_counts_once() -> None:
    both = """
    import mmap, os, sys
    memory = mmap.mmap(-1, 64 << 20)
    memory[:] = bytes([1]) * (64 << 20)
    child = os.fork()
    total = sum(memory[::4096])
    if child:
        print(child, total, flush=True)
        sys.stdin.readline()
        os.kill(child, 9)
        os.waitpid(child, 0)
    else:
        print(total, flush=True)
        os.read(0, 0)
        import time
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(both)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(2)]
        child = next(int(line[0]) for line in lines if len(line) == 2)
        shared = processes.memory_bytes([process.pid, child]) >> 20
        process.communicate("\n")
    assert 64 <= shared < 120


SERVER = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthcheck" else 404)
        self.end_headers()

options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
(Path("/dev/shm") / ("pool_" + options["--shm-name"])).write_text("left")
{twist}
HTTPServer(("127.0.0.1", int(options["--http-port"])), Answer).serve_forever()
"""


def server_program(folder: Path, twist: str = "") -> Path:
    program = folder / "lmcache"
    program.write_text(SERVER.format(python=sys.executable, twist=twist))
    program.chmod(0o755)
    return program


def left(name: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"*{name}"))


def test_a_server_that_is_ready_is_ended_with_what_it_left(tmp_path: Path) -> None:
    name = f"kvcache-test-{os.getpid()}-ready"
    with LmcacheServer(1 << 30, name, server_program(tmp_path), timeout_s=60) as server:
        assert server.port
        assert len(left(name)) == 1
        assert running(server.process_id)
    assert left(name) == []
    assert not running(server.process_id)


@pytest.mark.parametrize(
    ("twist", "error"),
    [
        ("sys.exit('no such option')", "lmcache server has ended: status 1; no such option"),
        ("import time; time.sleep(600)", r"lmcache server is not ready after 0\.5 s; it said nothing"),
    ],
)
def test_a_server_that_does_not_get_ready_says_why(tmp_path: Path, twist: str, error: str) -> None:
    name = f"kvcache-test-{os.getpid()}-absent"
    timeout_s = 0.5 if "sleep" in twist else 60
    with pytest.raises(RuntimeError, match=error):
        LmcacheServer(1 << 30, name, server_program(tmp_path, twist), timeout_s=timeout_s)
    assert left(name) == []


def test_a_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benches.compare.lmcache_server.END_TIMEOUT_S", 0.2)
    twist = f"import signal; signal.signal({int(signal.SIGTERM)}, signal.SIG_IGN)"
    with LmcacheServer(1 << 30, f"kvcache-test-{os.getpid()}-deaf", server_program(tmp_path, twist), 60) as server:
        pass
    assert not running(server.process_id)


def test_shared_memory_of_others_stays(tmp_path: Path) -> None:
    for name in ("pool_mine", "pool_mine-not"):
        (tmp_path / name).touch()
    remove_shared_memory("mine", tmp_path)
    remove_shared_memory("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pool_mine-not"]


def test_ports_differ() -> None:
    assert len(set(free_ports(8))) == 8


def test_an_engine_that_failed_says_the_last_line_of_its_traceback() -> None:
    said = "lmcache: Traceback (most recent call last):\n  File x\nTimeoutError: no answer\n\n--- end of /log\nnoise"
    assert last_line(SideFailed(said)) == "TimeoutError: no answer"


def test_the_library_of_llvmlite_has_no_dict_for_those_who_look() -> None:
    pytest.importorskip("llvmlite")
    from llvmlite.binding import ffi

    from benches.compare.engines_side import hide_llvmlite

    library: Any = ffi.lib
    hide_llvmlite()
    assert not hasattr(library, "__dict__")
    assert callable(library.LLVMPY_GetVersionInfo)
