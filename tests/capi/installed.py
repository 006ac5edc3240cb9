"""The C library installed into a folder, and what is done with an installed tree."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "c"


@dataclass(frozen=True)
class Installed:
    """An installed tree."""

    prefix: Path

    @property
    def lib(self) -> Path:
        return self.prefix / "lib"

    @property
    def include(self) -> Path:
        return self.prefix / "include"

    @property
    def library(self) -> Path:
        """The shared library itself, not a link to it."""
        return (self.lib / "libkvcache.so").resolve()

    def environment(self) -> dict[str, str]:
        """Returns the environment in which pkg-config finds this tree and no other."""
        # What `make` says to the makes that it starts is not for the examples' own.
        own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
        return own | {"PKG_CONFIG_LIBDIR": str(self.lib / "pkgconfig"), "LC_ALL": "C"}

    def pkg_config(self, *arguments: str) -> list[str]:
        """Returns the words that pkg-config answers."""
        return run(["pkg-config", *arguments, "kvcache"], env=self.environment()).split()


def run(command: list[str], *, timeout_s: float = 120, **options: Any) -> str:
    """Returns what a command prints; fails with all of its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def install(folder: Path) -> Installed:
    """Installs the library in the tests' cargo profile with DESTDIR, and moves it to where nobody said it would be."""
    environment = os.environ | {
        "PREFIX": "/opt/kvcache",
        "DESTDIR": str(folder / "package"),
        "LIBDIR": "lib",
        "PROFILE": os.environ.get("KVCACHE_CAPI_PROFILE", "test"),
    }
    run([str(ROOT / "scripts/install_capi.sh")], timeout_s=1200, env=environment)
    moved = folder / "moved"
    shutil.move(folder / "package" / "opt" / "kvcache", moved)
    return Installed(moved)


def build_examples(installed: Installed, folder: Path, *options: str) -> Path:
    """Builds the examples with their Makefile, which asks pkg-config, into `folder`."""
    command = ["make", "-C", str(EXAMPLES), "-s", f"OUT={folder}", "CFLAGS=-O1 -g -Werror", "CXXFLAGS=-O1 -g -Werror"]
    run([*command, *options], env=installed.environment())
    return folder
