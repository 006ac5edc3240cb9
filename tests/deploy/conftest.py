"""Paths and tools of these tests."""

import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def helm_python() -> str:
    """The Python that has Helm's library; skips where it cannot be had."""
    made = subprocess.run([REPO / "scripts" / "ensure_helm.sh"], capture_output=True, text=True, timeout=600)
    if made.returncode == 3:
        pytest.skip(f"Helm's library {made.stderr.strip().splitlines()[-1]}: the chart is not rendered")
    assert made.returncode == 0, made.stderr
    return f"{made.stdout.strip()}/bin/python"
