"""The published InfiniStore client (0.2.35) against `kvcache serve` over TCP: all its operations, and its traps."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[2]
SCENARIO_SECONDS_MAX = 60
"""A bound for a client that hangs."""

Scenario: TypeAlias = Callable[[str, int], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """Runs a scenario of `infinistore_client.py` in a process of its own."""
    made = subprocess.run([ROOT / "scripts/ensure_infinistore_client.sh"], capture_output=True, text=True, check=False)
    if made.returncode == 3:
        pytest.skip(f"the published InfiniStore client {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    folder = Path(made.stdout.strip())
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder / "libraries")}

    def run(name: str, port: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [folder / "venv/bin/python", ROOT / "tests/peers/infinistore_client.py", name, str(port)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SCENARIO_SECONDS_MAX,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def kvcache() -> Path:
    """The tool, built from this checkout."""
    built = subprocess.run([ROOT / "scripts/build_cli.sh"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@pytest.fixture
def port(kvcache: Path) -> Iterator[int]:
    """The port of a new server of 16 MiB."""
    command = [str(kvcache), "serve", "--listen", "127.0.0.1:0", "--capacity", "16MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield int(json.loads(server.stdout.readline())["listen"].rpartition(":")[2])
        finally:
            server.terminate()
            _, log = server.communicate(timeout=SCENARIO_SECONDS_MAX)
    assert server.returncode == 0, log
    *started, stopping = log.splitlines()
    assert stopping == "kvcache: info: stopping"
    # Whether there is RDMA, and nothing to complain about.
    assert all("info: " in line and "RDMA" in line for line in started), log


@pytest.mark.parametrize(
    "name",
    [
        "every_operation",
        "match_of_nothing",
        "overwrite",
        "missing_get",
        "without_room",
        "evictions",
        "many_requests",
    ],
)
def test_the_published_client(name: str, port: int, scenario: Scenario) -> None:
    result = scenario(name, port)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}{result.stderr}"


def test_the_published_client_crashes_where_the_status_alone_says_missing(scenario: Scenario) -> None:
    """Why `missing_get` is answered with a length of -1: this is what a plain 404 does, and that a crash is noticed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=_answer_with_404, args=(listener,), daemon=True)
        answering.start()
        result = scenario("only_missing_get", listener.getsockname()[1])
        answering.join(SCENARIO_SECONDS_MAX)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, "not an exception, which the caller could handle"


def _answer_with_404(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        header = connection.recv(9, socket.MSG_WAITALL)
        connection.recv(int.from_bytes(header[5:9], "little"), socket.MSG_WAITALL)
        connection.sendall((404).to_bytes(4, "little") + bytes(4))
