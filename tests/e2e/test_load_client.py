"""`kvcache load` against a real `vllm serve` with the connector: what is asked for comes back and is counted."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cache_server import tool
from tests.e2e.options import EngineOptions
from tests.e2e.server import MODEL, Server

PROMPTS = 6
PROMPT_TOKENS = 300
FULL_TOKENS = 256
"""Of a prompt, what whole slots of 128 tokens hold."""
ANSWER_TOKENS = 12


@pytest.fixture
def server(log: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    # Loads vLLM, so that the server can be forked.
    request.getfixturevalue("scenarios")
    # Of six prompts, the engine's own cache can hold two: the others come from the connector.
    options = EngineOptions(connector={"capacity": "16MiB"}, kv_blocks=24, tokens_max=700)
    with Server(options, log, forked=True) as server:
        server.wait_ready()
        yield server


def _load(server: Server, workload: Path, *flags: str, status: int = 0) -> dict[str, Any]:
    """Runs `kvcache load` and returns the summary."""
    run = _run(server, workload, MODEL, *flags, "--json")
    assert run.returncode == status, run.stdout + run.stderr
    summary: dict[str, Any] = json.loads(run.stdout)
    return summary


def _run(server: Server, workload: Path, model: str, *flags: str) -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{server.port}/v1"
    command = [str(tool()), "load", str(workload), "--url", url, "--model", model, "--vocabulary", "3..511", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def _workload(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def test_a_workload_is_answered_as_it_asks(server: Server, tmp_path: Path) -> None:
    requests = [{"pieces": [[stream, PROMPT_TOKENS]], "output_length": ANSWER_TOKENS} for stream in range(PROMPTS)]
    workload = _workload(tmp_path / "prompts.jsonl", requests)
    out = tmp_path / "results.jsonl"
    cold = _load(server, workload, "--concurrency", "2", "--out", str(out))
    warm = _load(server, workload, "--rate", "constant:4")

    for summary in (cold, warm):
        assert (summary["answered"], summary["failed"], summary["partial"]) == (PROMPTS, 0, False)
        assert summary["prompt_tokens"] == PROMPTS * PROMPT_TOKENS
        assert summary["output_tokens"] == PROMPTS * ANSWER_TOKENS
        assert (summary["short"], summary["counted_by_parts"]) == (0, 0)
        assert summary["ttft"]["count"] == summary["tpot"]["count"] == PROMPTS
        assert 0 < summary["ttft"]["p50_ms"] <= summary["e2e"]["max_ms"]
        # A token may share a part of the stream with another where the machine is busy.
        assert PROMPTS <= summary["itl"]["count"] <= PROMPTS * (ANSWER_TOKENS - 1)
    assert cold["cached_tokens"] == 0
    assert warm["cached_tokens"] >= PROMPTS * FULL_TOKENS
    # The engine alone could not have held them.
    assert server.metrics()["vllm:external_prefix_cache_hits_total"] >= (PROMPTS - 2) * FULL_TOKENS
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["index"] for line in lines[1:-1]) == list(range(PROMPTS))
    assert all(line["input_tokens"] == PROMPT_TOKENS for line in lines[1:-1])

    # Text goes through the server's tokenizer.
    text = _workload(tmp_path / "text.jsonl", [{"prompt": "t5 t6 t7", "output_length": 3}])
    summary = _load(server, text, "--concurrency", "1")
    assert (summary["prompt_tokens"], summary["output_tokens"]) == (3, 3)

    # What the server refuses is counted with its reason.
    long = _workload(tmp_path / "long.jsonl", [{"pieces": [[1, 5000]], "output_length": 1}])
    refused = _load(server, long, "--concurrency", "1", status=1)
    assert refused["errors"]["status 400"]["count"] == 1
    assert "700" in refused["errors"]["status 400"]["first"]

    other = _run(server, workload, "other", "--concurrency", "1")
    assert other.returncode == 1
    assert f"has no model `other`, it serves `{MODEL}`" in other.stderr
