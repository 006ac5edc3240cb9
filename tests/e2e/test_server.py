"""`vllm serve`, as a user starts it and spoken to over HTTP: without our connector, with it, and killed."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.crashes import SlabFile, shared_folder
from tests.e2e.options import EngineOptions
from tests.e2e.server import ServedCompletion, Server
from tests.models import prompt

PROMPT = prompt(0, 300)
FULL_TOKENS = 256
"""Of a prompt of 300 tokens, what whole slots of 128 tokens can hold and still leave a token to compute."""

OTHERS = [prompt(seed, 600) for seed in (1, 2)]
"""Together they take every block of `_options` after `PROMPT`, so vLLM's own cache has none of it, and neither has the
KV memory: a connector that loads nothing would be found out."""

METRICS_DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
def slab_folder() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


def _options(folder: Path) -> EngineOptions:
    # vLLM's xxhash is salted afresh in every process unless PYTHONHASHSEED is set: a restart needs it to be passed on.
    return EngineOptions(
        connector={"capacity": "16MiB", "slab_dir": str(folder)},
        kv_blocks=24,
        tokens_max=700,
        environment={"PYTHONHASHSEED": "0"},
        more={"prefix_caching_hash_algo": "xxhash"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("data_parallel", [1, 2])
def test_server_answers(log: Path, data_parallel: int) -> None:
    with Server(EngineOptions(), log, data_parallel=data_parallel) as server:
        server.wait_ready()
        answers = [server.complete(PROMPT) for _ in range(3)]
        assert all(answer.tokens == answers[0].tokens for answer in answers)
        assert len(set(answers[0].tokens)) >= 20
        assert max(answer.cached_tokens for answer in answers) == 288
        assert server.metrics("vllm:prompt_tokens_total")["vllm:prompt_tokens_total"] == 900


@pytest.mark.matrix
@pytest.mark.usefixtures("scenarios")
def test_an_evicted_prompt_is_loaded_and_counted(log: Path, slab_folder: Path) -> None:
    """The `scenarios` fixture has loaded vLLM, so the server is forked and there in seconds."""
    with Server(_options(slab_folder), log, forked=True) as server:
        server.wait_ready()
        cold = server.complete(PROMPT)
        for other in OTHERS:
            assert server.complete(other).cached_tokens == 0
        warm = server.complete(PROMPT)
        # Statistics are sent with a step's answer, so those of the last load come with the next one.
        server.complete(OTHERS[0][:40], tokens=4)
        values = server.metrics()
        page = server.metrics_page()

    _is_warm(cold, warm)
    assert values["vllm:kvcache_hits_total"] == 1
    assert values["vllm:kvcache_hit_tokens_total"] == FULL_TOKENS
    assert values["vllm:kvcache_queried_tokens_total"] >= 2 * len(PROMPT) + sum(map(len, OTHERS))
    kv_token_bytes = 2048
    assert values["vllm:kvcache_loaded_bytes_total"] == FULL_TOKENS * kv_token_bytes
    stored_tokens = values["vllm:kvcache_stored_blocks_total"] * 128
    assert stored_tokens >= FULL_TOKENS + 2 * 512
    assert values["vllm:kvcache_offloaded_bytes_total"] == stored_tokens * kv_token_bytes
    assert values["vllm:kvcache_internal_errors_total"] == 0
    # vLLM's own count of what the connector gave it.
    assert values["vllm:external_prefix_cache_hits_total"] == FULL_TOKENS
    assert values["vllm:external_prefix_cache_queries_total"] == values["vllm:kvcache_queried_tokens_total"]
    assert values["vllm:prefix_cache_hits_total"] == 0
    # Every metric of the document is served under its name, with its type.
    documented = re.findall(r"^\| `(vllm:kvcache_\w+)[^`]*` \| (\w+) \|", METRICS_DOCUMENT.read_text(), re.MULTILINE)
    served = re.findall(r"^# TYPE (vllm:kvcache_\w+) (\w+)$", page, re.MULTILINE)
    assert len(documented) > 20
    assert {(name, kind) for name, kind in served if not name.endswith("_created")} == set(documented)


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["forked", "afresh"])
def test_a_killed_server_is_warm(request: pytest.FixtureRequest, log: Path, slab_folder: Path, forked: bool) -> None:
    if forked:
        request.getfixturevalue("scenarios")  # loads vLLM, which a server that starts afresh does by itself
    options = _options(slab_folder)
    with Server(options, log, forked=forked) as server:
        server.wait_ready()
        cold = server.complete(PROMPT)
        # Offloads run beside the steps, so the answer may be there before the last of its blocks.
        _wait(lambda: len(SlabFile.all(slab_folder)[0].slots(SlabFile.READY)) >= 2)
        server.kill()
    with Server(options, log, forked=forked) as server:
        server.wait_ready()
        warm = server.complete(PROMPT)
        server.complete(OTHERS[0][:40], tokens=4)
        values = server.metrics()
    _is_warm(cold, warm)
    assert values["vllm:kvcache_adopted_blocks_total"] >= 2
    assert values["vllm:kvcache_hit_tokens_total"] == FULL_TOKENS
    assert values["vllm:external_prefix_cache_hits_total"] == FULL_TOKENS


def _is_warm(cold: ServedCompletion, warm: ServedCompletion) -> None:
    assert cold.cached_tokens == 0
    assert warm.cached_tokens == FULL_TOKENS
    assert warm.tokens == cold.tokens
    # Tokens that are all the same would be equal whatever was loaded.
    assert len(set(cold.tokens)) >= 20


def _wait(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
