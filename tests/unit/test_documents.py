"""What the documents say is what the code does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from aibrix_connector import reference
from aibrix_connector.settings import Settings, read

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "ARCHITECTURE.md"))]


@pytest.mark.parametrize("name", reference.PARTS)
def test_generated_parts_are_current(name: str) -> None:
    if name == "metrics":
        pytest.importorskip("vllm")
    document, make = reference.PARTS[name]
    text = (ROOT / "docs" / document).read_text()
    assert text == reference.updated(text, name, make()), "run python -m aibrix_connector.reference"


def test_a_document_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place for settings: put <!-- generated: settings -->"):
        reference.updated("text", "settings", "table")


def test_check_finds_what_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PARTS", {"x": ("x.md", lambda: "new")})
    document = tmp_path / "x.md"
    document.write_text("a\n<!-- generated: x -->\n\nold\n<!-- end of x -->\nb\n")
    assert reference.main(["--check", str(tmp_path)]) == 1
    assert "old" in document.read_text()
    assert reference.main([str(tmp_path)]) == 0
    assert document.read_text() == "a\n<!-- generated: x -->\n\nnew\n<!-- end of x -->\nb\n"
    assert reference.main(["--check", str(tmp_path)]) == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_the_newest_results_are_those_that_the_readme_shows() -> None:
    newest = max(page.parent.name for page in (ROOT / "benches" / "results").glob("*/results.md"))
    shown = set(re.findall(r"benches/results/([^/)]+)/", (ROOT / "README.md").read_text()))
    assert newest in shown, f"README.md shows {sorted(shown)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_in_commands_are_known(document: Path) -> None:
    import json

    for text in re.findall(r"'(\{\s*\"kv_connector\".*?\})'", document.read_text(), re.DOTALL):
        config = json.loads(text)
        assert config["kv_connector"] == "AIBrixOffloadingConnectorV1Type3"
        assert isinstance(read(config.get("kv_connector_extra_config", {}), {})[0], Settings)


def test_every_miss_reason_and_warning_is_explained() -> None:
    pytest.importorskip("vllm")
    from aibrix_connector.metrics import REASONS

    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)[: len(REASONS)] == list(REASONS)


def test_the_example_of_block_cache_runs(slab_folder: Path) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(ROOT / "examples" / "block_cache.py"), str(slab_folder)]
    for _ in range(2):  # the second run finds nothing that the first has left
        run = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert run.stderr == ""
        assert run.stdout == (
            "62 blocks, 0 of them in the cache already\n62 leading blocks are in the cache now\n"
            "another prompt: 31 leading blocks\nafter a restart: 62 blocks, bytes equal: True\n"
        )
