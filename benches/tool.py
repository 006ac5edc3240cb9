"""The user tool `kvcache`, in the release profile."""

import argparse
import os
import subprocess
from functools import cache
from pathlib import Path

from benches.machine import ROOT


def kvcache(arguments: argparse.Namespace) -> Path:
    """The one that was given, or this checkout's, built if needed."""
    return arguments.kvcache or built()


@cache
def built() -> Path:
    """The tool of this checkout."""
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "-p", "kvcache-cli"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "kvcache"
