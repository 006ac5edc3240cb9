"""The images' root file systems: nothing but what is needed, and the programs run in them as a user without rights."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from .conftest import REPO

USER = "65532:65532"
DASHBOARD = REPO / "deploy" / "monitoring" / "dashboard.json"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the root folder")


def tree(program: str, folder: Path) -> Path:
    """The root file system with a program, made by the script that makes the images'."""
    root = folder / program
    script = REPO / "scripts" / "image_rootfs.sh"
    binary = Path(os.environ["KVCACHE_PROGRAMS"]) / program
    made = subprocess.run([script, binary, root], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    return root


@contextmanager
def running(root: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A program inside, ended at the end."""
    process = subprocess.Popen(
        ["chroot", f"--userspec={USER}", root, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree("kvcache", tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (REPO / "kvcache-operator" / "src" / "main.rs").exists():
        pytest.skip("the operator has no program yet")
    return tree("kvcache-operator", tmp_path_factory.mktemp("image"))


def get(address: str, path: str) -> str:
    with urlopen(f"http://{address}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_the_server_serves_without_rights_and_its_metrics_are_those_of_the_dashboard(server: Path) -> None:
    options = ["serve", "--listen=127.0.0.1:0", "--manage=127.0.0.1:0", "--capacity=16MiB"]
    with running(server, "/usr/bin/kvcache", *options) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        ready = json.loads(next(line for line in lines if line.startswith("{")))
        status = Path(f"/proc/{ready['pid']}/status").read_text()
        assert re.search(r"^Uid:\t65532\t", status, re.MULTILINE)
        assert get(ready["manage"], "/healthz")
        assert get(ready["manage"], "/readyz")
        metrics = get(ready["manage"], "/metrics")
        process.terminate()
        assert process.wait(30) == 0
    known = set(re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE))
    asked = {name.removesuffix("_bucket") for name in re.findall(r"kvcache_server_[a-z0-9_]+", DASHBOARD.read_text())}
    assert len(asked) > 10
    assert asked - known == set()


def test_the_operator_starts(operator: Path) -> None:
    for argument in ["--help", "--version"]:
        with running(operator, "/usr/bin/kvcache-operator", argument) as process:
            text, _ = process.communicate(timeout=30)
        assert process.returncode == 0, text
        assert "kvcache-operator" in text
        if argument == "--help":
            flags = set(re.findall(r"--[a-z-]+", text)) - {"--help", "--version"}
            table = (REPO / "docs" / "operator.md").read_text().split("\n## Flags\n")[1].split("\n## ")[0]
            assert flags == set(re.findall(r"--[a-z-]+", table.replace("|---", "|")))


@pytest.mark.parametrize("name", ["server", "operator"])
def test_there_is_nothing_else_inside(name: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(name)
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    programs = [path for path in files if path.parts[:2] == ("usr", "bin")]
    assert len(programs) == 1
    others = [path for path in files if path not in programs and ".so" not in path.name]
    known = {"passwd", "group", "nsswitch.conf", "ca-certificates.crt"}
    assert {path.name for path in others if "libibverbs.d" not in path.parts} == known
    # Whoever gets in as this user can change nothing but what is in /tmp, which pods have read-only as well.
    writable = [path for path in root.rglob("*") if path.stat().st_mode & 0o002 and not path.is_symlink()]
    assert writable == [root / "tmp"]
    assert all(path.stat().st_uid == 0 for path in root.rglob("*"))


@pytest.mark.parametrize("name", ["server", "operator"])
def test_the_dockerfile_copies_the_tree_and_runs_the_program_as_the_user(name: str) -> None:
    program = {"server": "kvcache", "operator": "kvcache-operator"}[name]
    lines = (REPO / "deploy" / "images" / f"{name}.Dockerfile").read_text().splitlines()
    assert "FROM scratch" in lines
    assert "COPY . /" in lines
    assert f"USER {USER}" in lines
    assert f'ENTRYPOINT ["/usr/bin/{program}"]' in lines
