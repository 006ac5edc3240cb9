"""What docs/c-api.md says is what the library does."""

import os
import re
import shutil
from pathlib import Path

from tests.capi.installed import EXAMPLES, ROOT, Installed, run

TEXT = (ROOT / "docs" / "c-api.md").read_text()


def rows(title: str) -> list[str]:
    """The first cells of the table under a title."""
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)


def test_the_settings_are_those_that_the_library_knows() -> None:
    known: set[str] = set()
    for name in ("config", "remote_config"):
        source = ROOT / "kvcache-capi" / "src" / f"{name}.rs"
        if source.exists():
            lists = re.findall(r"const \w+: [^=]*= &?\[(.*?)\];|extend\(\[(.*?)\]\)", source.read_text(), re.DOTALL)
            known |= set(re.findall(r'"(\w+)"', " ".join(text for pair in lists for text in pair)))
    assert "block_bytes" in known
    assert [row.strip("`") for row in rows("Settings")] == sorted(
        known, key=[row.strip("`") for row in rows("Settings")].index
    )


def test_every_status_is_explained() -> None:
    header = (ROOT / "include" / "kvcache.h").read_text()
    statuses = re.findall(r"^    (KVC_\w+) = \d+,", header.split("enum kvc_log_level")[0], re.MULTILINE)
    assert len(statuses) > 10
    assert sorted(re.findall(r"KVC_\w+", " ".join(rows("Status codes")))) == sorted(statuses)


def test_the_first_program_runs_as_it_stands(installed: Installed, tmp_path: Path) -> None:
    (program,) = re.findall(r"```c\n(.*?)```", TEXT, re.DOTALL)
    source, binary = tmp_path / "program.c", tmp_path / "program"
    source.write_text(program)
    flags = installed.pkg_config("--cflags", "--libs")
    run(
        [
            "gcc",
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Werror",
            str(source),
            *flags,
            f"-Wl,-rpath,{installed.lib}",
            "-o",
            str(binary),
        ]
    )
    assert run([str(binary)]) == "2 blocks\n"


def test_the_quick_start_is_what_has_to_be_typed(installed: Installed, tmp_path: Path) -> None:
    (lines,) = re.findall(r"## Quick start\n\n```bash\n(.*?)```", TEXT, re.DOTALL)
    first, *rest = lines.splitlines()
    assert first == "make install PREFIX=$HOME/kvcache"
    shutil.copytree(EXAMPLES, tmp_path / "examples" / "c")
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    (tmp_path / "kvcache").symlink_to(installed.prefix)
    assert "62 blocks are loaded" in run(["bash", "-euc", "\n".join(rest)], cwd=tmp_path, env=home)


def test_the_static_command_links_no_shared_library(installed: Installed, tmp_path: Path) -> None:
    (program,) = re.findall(r"```c\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "program.c").write_text(program)
    (command,) = re.findall(r"Statically.*?```bash\n(.*?)```", TEXT, re.DOTALL)
    run(["bash", "-euc", command], cwd=tmp_path, env=installed.environment())
    assert run([str(tmp_path / "program")]) == "2 blocks\n"
    assert "libkvcache" not in run(["ldd", str(tmp_path / "program")])


def test_the_lines_of_cpp_compile(installed: Installed, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```cpp\n(.*?)```", TEXT, re.DOTALL)
    source = tmp_path / "lines.cpp"
    body = f"int main() {{\nstd::vector<std::int32_t> tokens(32);\n{lines}return hits == 0 ? 0 : 1;\n}}\n"
    source.write_text(f"#include <cstdio>\n#include <kvcache.hpp>\n{body}")
    run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{installed.include}", str(source)])
