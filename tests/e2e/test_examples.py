"""The examples that need an engine, run as they are. `block_cache.py` is run by tests/unit/test_documents.py."""

import contextlib
import re
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

from tests.e2e.crashes import fork_ranks, shared_folder
from tests.e2e.scenario import Scenarios
from tests.models import MODELS

EXAMPLES = Path(__file__).parents[2] / "examples"


def _printed(script: str, *arguments: str) -> str:
    """What a script prints as a program of its own; its engine's processes are forks of this one."""
    fork_ranks()
    sys.argv = [script, *arguments]
    # A file and no buffer: some vLLM releases redirect what is behind it.
    with tempfile.TemporaryFile("w+") as printed, contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        printed.seek(0)
        return printed.read()


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"block_cache.py", "vllm_offline.py"}


@pytest.mark.matrix
def test_vllm_offline(scenarios: Scenarios) -> None:
    # 360 words are 360 tokens for this model: two whole blocks, of which all are loaded.
    texts = set()
    with shared_folder() as folder:
        for loaded in ([0, 256], [256, 256]):
            printed = scenarios.run(
                _printed,
                "vllm_offline.py",
                str(MODELS["tiny"].folder()),
                str(folder),
                environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
            )
            runs = re.findall(r"^(\w+) run: (\d+) tokens loaded, '(.*)'$", printed, re.MULTILINE)
            assert [(name, int(tokens)) for name, tokens, _ in runs] == list(
                zip(("first", "second"), loaded, strict=True)
            ), printed
            texts |= {text for _, _, text in runs}
    (text,) = texts
    assert len(text.split()) == 20
