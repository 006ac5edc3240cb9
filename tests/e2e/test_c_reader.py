"""A C program reads, byte for byte, what a vLLM process has stored: engines of different kinds share blocks."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.capi.installed import build_examples, install
from tests.e2e.cache_server import CacheServer
from tests.e2e.options import EngineOptions
from tests.e2e.scenario import Scenarios
from tests.models import prompt

SHORT = [prompt(70 + seed, 300) for seed in range(3)]
LONG = [prompt(80 + seed, 1900) for seed in range(3)]
SLOT_BLOCKS = 2
SLOT_TOKENS = SLOT_BLOCKS * EngineOptions().block_tokens
PLAIN_REQUEST = "00" * 26
"""What separates keys besides the tokens: group 0 and, each with its length, no adapter, no name of one, no salt."""


@pytest.fixture(scope="module")
def ask_ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask_ring")
    return build_examples(install(folder), folder) / "ask_ring"


def _store(options: EngineOptions, prompts: list[list[int]], folder: str) -> dict[str, Any]:
    """Answers the prompts, and writes what the engine's own memory holds of each slot then, as the Store sees it."""
    from aibrix_connector import worker

    from tests.e2e.engine import Engine
    from tests.e2e.inside import add, run, settle, worker_side

    # vLLM sets all handlers of its loggers anew when an engine starts.
    said: list[str] = []
    worker.logger.info = lambda text, *values: said.append(text % values)
    with Engine(options) as engine:
        scheduler = engine.core().scheduler
        blocks: dict[tuple[int, ...], list[int]] = {}

        def note(_step: int) -> None:
            for request_id, request in scheduler.requests.items():
                ids = scheduler.kv_cache_manager.get_block_ids(request_id)[0]
                blocks[tuple(request.prompt_token_ids)] = list(ids)

        for number, tokens in enumerate(prompts):
            add(engine, f"request {number}", tokens, answer=4)
        run(engine, note)
        settle(engine)
        side = worker_side(engine)
        layers = side._last_layer + 1
        for number, tokens in enumerate(prompts):
            own = b""
            for slot in range(len(tokens) // SLOT_TOKENS):
                # Each as a slot would hold it: layer by layer, in each layer the first of the slot's blocks.
                alone = [
                    side._store.read_block(0, block)
                    for block in blocks[tuple(tokens)][slot * SLOT_BLOCKS : (slot + 1) * SLOT_BLOCKS]
                ]
                page = len(alone[0]) // layers // SLOT_BLOCKS
                own += b"".join(
                    block[layer * SLOT_BLOCKS * page :][:page] for layer in range(layers) for block in alone
                )
            (Path(folder) / f"engine-{number}").write_bytes(own)
    (line,) = [line for line in said if "shares its blocks as" in line]
    return {"line": line}


def _read(ask_ring: Path, remote: str, line: str, prompts: list[list[int]], folder: Path) -> None:
    """Reads every prompt's blocks with the C program, by what the engine's log says, and compares."""
    found = re.search(r"as (\"namespace_id\": .*), of (\d+) tokens$", line)
    assert found is not None, line
    identity = json.loads("{" + found[1] + "}")
    assert (found[2], identity.keys()) == (str(SLOT_TOKENS), {"namespace_id", "shard_id", "block_bytes"})

    def ask(tokens: list[int], extra: str) -> tuple[int, str, bytes]:
        prompt_file, output = folder / "prompt", folder / "read"
        prompt_file.write_text(" ".join(map(str, tokens)))
        arguments = [identity["namespace_id"], identity["shard_id"], str(identity["block_bytes"]), found[2], extra]
        command = [ask_ring, remote, *arguments, prompt_file, output]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr, output.read_bytes()

    for number, tokens in enumerate(prompts):
        own = (folder / f"engine-{number}").read_bytes()
        slots = len(tokens) // SLOT_TOKENS
        assert len(own) == slots * identity["block_bytes"]
        status, said, read = ask(tokens, PLAIN_REQUEST)
        assert (status, said) == (0, f"{slots} of {slots} blocks\n")
        assert read == own
    # Another salt, or another first token, is another prefix.
    assert ask(prompts[0], PLAIN_REQUEST[:-2] + "01")[::2] == (3, b"")
    assert ask([prompts[0][0] + 1, *prompts[0][1:]], PLAIN_REQUEST)[::2] == (3, b"")


def _options(remote: str) -> EngineOptions:
    connector = {"capacity": "64MiB", "slot_blocks": SLOT_BLOCKS, "weights_digest": "test", "key_source": "tokens"}
    return EngineOptions(connector={**connector, "remote": remote})


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[list[CacheServer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(CacheServer(tmp_path / f"server-{number}.log", flags=("--no-shared-memory",)))
            for number in range(3)
        ]


def test_c_reads_from_a_ring_what_vllm_has_stored(
    scenarios: Scenarios, ask_ring: Path, ring: list[CacheServer], tmp_path: Path
) -> None:
    remote = "tcp://" + ",".join(server.address for server in ring)
    line = scenarios.run(_store, _options(remote), SHORT, str(tmp_path))["line"]
    assert all(server.values() > 0 for server in ring), "blocks are spread over the ring"
    _read(ask_ring, remote, line, SHORT, tmp_path)


def test_c_reads_from_the_memory_of_the_server_on_its_host(
    scenarios: Scenarios, ask_ring: Path, tmp_path: Path
) -> None:
    with CacheServer(tmp_path / "server.log") as server:
        remote = f"tcp://{server.address}"
        line = scenarios.run(_store, _options(remote), LONG, str(tmp_path))["line"]
        assert server.metrics()["kvcache_server_shared_written_bytes_total"] > 0
        before = server.metrics()["kvcache_server_shared_read_bytes_total"]
        # The first values of a process go over TCP, which leads to the Unix socket; how many depends on the machine.
        for _ in range(10):
            _read(ask_ring, remote, line, LONG, tmp_path)
            if server.metrics()["kvcache_server_shared_read_bytes_total"] > before:
                return
        pytest.fail("no value was read from the server's memory")
