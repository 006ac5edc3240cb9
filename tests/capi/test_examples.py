"""The examples, built against the installed tree as a user builds them, and run: as they are and under valgrind."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.capi.installed import EXAMPLES, Installed, build_examples, run

REMEMBER = (
    "62 blocks, 0 of them are here\n62 leading blocks are stored\n62 blocks are loaded, their bytes are equal\n"
    "1 block is deleted, 10 leading blocks are left\n"
)
THREADS = "60 prompts are stored, 60 loaded with the right bytes\n"
Build = Callable[[Installed, Path], Path]


def _with_cmake(installed: Installed, folder: Path, *options: str) -> Path:
    cmake = Path(sys.executable).with_name("cmake")
    if not cmake.exists():
        found = shutil.which("cmake")
        if found is None:
            pytest.skip("there is no cmake: it comes with scripts/ensure_dev_tools.sh where packages can be downloaded")
        cmake = Path(found)
    build = folder / "build"
    paths = [f"-DCMAKE_PREFIX_PATH={installed.prefix}", "-DCMAKE_BUILD_TYPE=Debug", "-G", "Unix Makefiles"]
    run([str(cmake), "-S", str(EXAMPLES), "-B", str(build), *paths, *options])
    run([str(cmake), "--build", str(build), "--parallel", "2"])
    return build


BUILDS: dict[str, Build] = {
    "pkg-config": build_examples,
    "pkg-config static": lambda installed, folder: build_examples(installed, folder, "STATIC=1"),
    "cmake": _with_cmake,
    "cmake static": lambda installed, folder: _with_cmake(installed, folder, "-DKVCACHE_STATIC=ON"),
}


@pytest.fixture(scope="module")
def programs(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples with the shared library, found through pkg-config."""
    return build_examples(installed, tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize("way", BUILDS)
def test_examples_run(installed: Installed, tmp_path: Path, way: str) -> None:
    folder = BUILDS[way](installed, tmp_path)
    remembered = run([str(folder / "remember")])
    assert remembered.startswith("libkvcache ")
    assert REMEMBER in remembered
    assert '"stored": 62' in remembered
    assert run([str(folder / "threads")]) == THREADS
    served = run([str(folder / "engine")])
    for mode in ("layerwise", "async"):
        assert f"{mode}: 1152 of 1200 tokens of the second round came from the cache\n" in served
    asked = subprocess.run([folder / "ask_ring"], capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stderr.startswith("usage: ")) == (2, True)
    loads = re.search(r"libkvcache\.so\.0 => (\S+)", run(["ldd", str(folder / "remember")]))
    if "static" in way:
        assert loads is None
    else:
        assert loads is not None
        assert Path(loads[1]).samefile(installed.library)


def test_every_example_is_built_and_run() -> None:
    sources = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".c", ".cpp", ".py")}
    assert sources == {"remember.c", "ask_ring.c", "threads.cpp", "engine.cpp", "ctypes_demo.py"}
    cmake = (EXAMPLES / "CMakeLists.txt").read_text()
    assert set(re.findall(r"add_executable\(\w+ (\S+)\)", cmake)) == sources - {"ctypes_demo.py"}


def test_ctypes(installed: Installed) -> None:
    library = installed.lib / "libkvcache.so.0"
    printed = run([sys.executable, str(EXAMPLES / "ctypes_demo.py"), str(library)])
    assert "6 blocks are stored\n6 blocks are loaded, bytes equal: True\n" in printed
    assert "a wrong size is an error: kvc_get: out has 1 bytes" in printed


def test_ctypes_finds_the_library_of_the_system(installed: Installed) -> None:
    environment = os.environ | {"LD_LIBRARY_PATH": str(installed.lib)}
    assert "bytes equal: True" in run([sys.executable, str(EXAMPLES / "ctypes_demo.py")], env=environment)


def test_ask_ring_names_what_is_wrong(programs: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("1 2 3 4")
    identity = ["00" * 16, "11" * 16]

    def ask(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([programs / "ask_ring", *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    status, error = ask("http://x", *identity, "64", "2", "", str(tokens))
    assert (status, "remote" in error) == (1, True), error
    status, error = ask("tcp://127.0.0.1:1", "0011", identity[1], "64", "2", "", str(tokens))
    assert (status, "namespace_id" in error) == (1, True), error
    # Nobody is there: that is a miss, and the problem is named.
    status, error = ask("tcp://127.0.0.1:1", *identity, "64", "2", "", str(tokens))
    assert (status, "127.0.0.1:1" in error) == (3, True), error


def test_the_engine_finds_wrong_bytes(programs: Path) -> None:
    """Negative control: a cache that claims hits and loads nothing."""
    done = subprocess.run([programs / "engine", "claim_hits_load_nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert done.stderr != ""


def test_no_memory_is_lost_or_misused(programs: Path) -> None:
    memcheck = ["valgrind", "-q", "--leak-check=full", "--error-exitcode=9"]
    assert REMEMBER in run([*memcheck, str(programs / "remember")])
    assert "1152 of 1200" in run([*memcheck, str(programs / "engine")], timeout_s=300)


def test_threads_under_drd(programs: Path) -> None:
    """See drd.supp for what this can show and what it cannot."""
    suppressions = Path(__file__).with_name("drd.supp")
    options = ["-q", "--tool=drd", "--error-exitcode=9", f"--suppressions={suppressions}"]
    assert run(["valgrind", *options, str(programs / "threads")], timeout_s=300) == THREADS
