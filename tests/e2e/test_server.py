"""`vllm serve` without our connector: the helper works, and so do two data-parallel engines."""

from pathlib import Path

import pytest

from tests.e2e.options import EngineOptions
from tests.e2e.server import Server
from tests.models import prompt

PROMPT = prompt(0, 300)


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
