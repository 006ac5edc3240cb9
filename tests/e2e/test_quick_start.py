"""The lines of docs/quickstart.md are run, and what the document promises of them is what happens.

Bash reads the lines as they stand in the document, after these substitutions and no others:

- `vllm serve` hands its words to `tests.e2e.server`, which starts the server in a fork, on a free port and eagerly;
- MODEL is the folder of a tiny model, `localhost:8000` the server's address;
- `/dev/shm` is a fresh folder in it, and 8GiB are 64MiB; where the line names no capacity, the environment does, so
  that a test does not take an eighth of the machine's memory, and the engine takes 1 GiB where the lines say 4.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.crashes import SlabFile, shared_folder
from tests.e2e.options import EngineOptions
from tests.e2e.server import Server
from tests.models import MODELS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()

STAND_INS = """
vllm() { [ "$1" = serve ] && [ "$VLLM_CPU_KVCACHE_SPACE" = 4 ] && shift && printf '%s\\0' "$@"; }
"""

ENGINE = EngineOptions(environment={"VLLM_CPU_KVCACHE_SPACE": "1", "AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB": "0.0625"})


class Reader:
    """Somebody who types the document's commands one after the other."""

    def __init__(self, slab_folder: Path, log: Path) -> None:
        self.model = str(MODELS["tiny"].folder())
        self.slab_folder = slab_folder
        self.log = log
        self.server: Server | None = None

    def runs(self, command: str) -> str:
        """What a command prints; one that fails fails the test."""
        words = {"MODEL": self.model, "/dev/shm": str(self.slab_folder), "8GiB": "64MiB"}
        if self.server is not None:
            words["localhost:8000"] = f"127.0.0.1:{self.server.port}"
        for documented, actual in words.items():
            command = command.replace(documented, actual)
        run = subprocess.run(
            # The loopback interface is never reached through a proxy.
            ["bash", "-euc", f"set -o pipefail; export no_proxy=127.0.0.1\n{STAND_INS}{command}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def serves(self, command: str) -> Server:
        """The server that a command starts."""
        line = self.runs(command).split("\0")[:-1]
        assert line[0] == self.model
        self.server = Server(ENGINE, self.log, line=line, flags=["--enforce-eager"], forked=True)
        self.server.wait_ready()
        return self.server


@pytest.fixture
def reader(log: Path) -> Iterator[Reader]:
    with shared_folder() as folder:
        reader = Reader(folder, log)
        try:
            yield reader
        finally:
            if reader.server is not None:
                reader.server.stop()


def _fenced(heading: str) -> list[tuple[str, str]]:
    """Language and text of each fenced part below a heading of the document."""
    below = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", below, re.MULTILINE | re.DOTALL)


def _pattern(documented: str) -> str:
    """A printed line as a regular expression: `...` is anything, a process has another number every time."""
    return re.escape(documented.strip()).replace(re.escape("..."), ".*").replace("4711", r"\d+")


def test_every_command_is_known_here() -> None:
    """A command that is added to the document is not run before a test below says what it is to do."""
    languages = {heading: [kind for kind, _ in _fenced(heading)] for heading in re.findall(r"^## (.*)", DOCUMENT, re.M)}
    assert languages == {
        "Serve": ["bash", "text"],
        "Keep the cache over restarts": ["bash"],
        "See that it works": ["bash", "bash", "text"],
        "Without an engine": [],
    }


@pytest.mark.usefixtures("scenarios")
def test_serve(reader: Reader) -> None:
    (_, serve), (_, said) = _fenced("Serve")
    reader.serves(serve)
    assert re.search(_pattern(said), reader.log.read_text())
    assert not SlabFile.all(reader.slab_folder)


@pytest.mark.matrix
@pytest.mark.usefixtures("scenarios")
def test_a_restarted_engine_loads_what_the_document_says(reader: Reader) -> None:
    ((_, serve),) = _fenced("Keep the cache over restarts")
    (_, send), (_, look), (_, promised) = _fenced("See that it works")

    def answer() -> Any:
        return json.loads(reader.runs(send))["choices"][0]["text"]

    first_server = reader.serves(serve)
    first = answer()
    seen = reader.runs(look)
    assert re.search(r"^vllm:kvcache_hit_tokens_total\{.*\} 0\.0$", seen, re.MULTILINE)
    first_server.kill()
    assert SlabFile.all(reader.slab_folder)

    reader.serves(serve)
    assert answer() == first
    seen = reader.runs(look)
    assert len(seen.splitlines()) == len(promised.splitlines())
    for line in promised.splitlines():
        assert re.search(f"^{_pattern(line)}$", seen, re.MULTILINE), f"{line}\n{seen}"
