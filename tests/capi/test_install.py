"""What `make install` puts where, and what the libraries show and need."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.capi.installed import ROOT, Installed, run

VERSION = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]
MAJOR = VERSION.split(".")[0]


def test_every_file_is_where_it_belongs(installed: Installed) -> None:
    found = {str(path.relative_to(installed.prefix)) for path in installed.prefix.rglob("*") if not path.is_dir()}
    assert found == {
        "include/kvcache.h",
        "include/kvcache.hpp",
        "lib/libkvcache.a",
        "lib/libkvcache.so",
        f"lib/libkvcache.so.{MAJOR}",
        f"lib/libkvcache.so.{VERSION}",
        "lib/pkgconfig/kvcache.pc",
        "lib/cmake/kvcache/kvcacheConfig.cmake",
        "lib/cmake/kvcache/kvcacheConfigVersion.cmake",
    }
    assert os.readlink(installed.lib / "libkvcache.so") == f"libkvcache.so.{MAJOR}"
    assert os.readlink(installed.lib / f"libkvcache.so.{MAJOR}") == f"libkvcache.so.{VERSION}"
    for path in (installed.lib / "pkgconfig" / "kvcache.pc", *(installed.lib / "cmake" / "kvcache").iterdir()):
        assert not re.search(r"@[A-Z_]+@|/opt/kvcache", path.read_text()), f"{path} is not relocatable or not filled in"


def test_the_shared_library_has_its_soname_and_needs_the_system_only(installed: Installed) -> None:
    dynamic = run(["readelf", "-d", "-W", str(installed.library)])
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == [f"libkvcache.so.{MAJOR}"]
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    system = {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2"}
    assert "libc.so.6" in needed
    assert needed <= system, f"no GPU, NIC or Python is needed to load it, and these are: {needed - system}"


def test_only_the_interface_is_exported(installed: Installed) -> None:
    exported = {line.split()[-1] for line in run(["nm", "-D", "--defined-only", str(installed.library)]).splitlines()}
    assert {name for name in exported if not name.startswith("kvc_")} == set()
    assert "kvc_open_for_abi" in exported


def test_the_shared_library_is_small_and_stripped(installed: Installed) -> None:
    assert installed.library.stat().st_size < 8_000_000
    sections = run(["readelf", "-S", "-W", str(installed.library)])
    assert ".symtab" not in sections
    assert ".debug_info" not in sections


def test_the_static_library_has_code_and_nothing_for_compilers(installed: Installed) -> None:
    sections = set(re.findall(r"\] (\.[a-z_]+)", run(["readelf", "-S", "-W", str(installed.lib / "libkvcache.a")])))
    assert ".text" in sections
    assert sections & {".llvmbc", ".llvmcmd", ".debug_info"} == set()


def test_a_folder_of_libraries_can_have_any_depth(tmp_path: Path) -> None:
    """Debian's is lib/x86_64-linux-gnu. The paths in the files still lead to the headers."""
    environment = os.environ | {
        "PREFIX": str(tmp_path),
        "DESTDIR": "",
        "LIBDIR": "lib/x86_64-linux-gnu",
        "PROFILE": "test",
    }
    run([str(ROOT / "scripts/install_capi.sh")], timeout_s=600, env=environment)
    pkgconfig = tmp_path / "lib/x86_64-linux-gnu/pkgconfig"
    environment = os.environ | {"PKG_CONFIG_LIBDIR": str(pkgconfig)}
    (include,) = run(["pkg-config", "--variable=includedir", "kvcache"], env=environment).split()
    assert (Path(include) / "kvcache.h").samefile(tmp_path / "include" / "kvcache.h")
    (libdir,) = run(["pkg-config", "--variable=libdir", "kvcache"], env=environment).split()
    assert Path(libdir).samefile(tmp_path / "lib/x86_64-linux-gnu")


@pytest.mark.parametrize(("name", "value"), [("PREFIX", "usr"), ("LIBDIR", "/usr/lib"), ("LIBDIR", "../lib")])
def test_folders_that_cannot_be_meant_are_refused(tmp_path: Path, name: str, value: str) -> None:
    environment = os.environ | {"PREFIX": str(tmp_path), "DESTDIR": "", "PROFILE": "test", name: value}
    done = subprocess.run(
        [ROOT / "scripts/install_capi.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{name} is {value}: give" in done.stderr
    assert list(tmp_path.iterdir()) == []
