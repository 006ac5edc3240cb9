"""What compiled programs rely on changes only on purpose."""

import difflib
from pathlib import Path

import pytest

from tests.capi.abi import COMMITTED, ROOT, Header, function_name, parse, snapshot
from tests.capi.installed import Installed


def test_the_interface_is_the_committed_one(installed: Installed) -> None:
    now = snapshot(installed.include / "kvcache.h", installed.library)
    difference = list(
        difflib.unified_diff(COMMITTED.read_text().splitlines(), now.splitlines(), "committed", "now", lineterm="")
    )
    assert difference == [], (
        "the binary interface is another than include/kvcache.abi says. If that is meant: run `make capi-abi`, raise "
        "KVC_ABI_VERSION for what is new, the major version for what breaks programs, and write it into CHANGELOG.md\n"
        + "\n".join(difference)
    )


def test_header_and_library_have_the_same_functions(installed: Installed) -> None:
    lines = COMMITTED.read_text().splitlines()
    symbols = lines[lines.index("# symbols") + 1 : lines.index("# numbers") - 1]
    declared = [function_name(function) for function in parse(installed.include / "kvcache.h").functions]
    assert declared == symbols


def test_every_shape_of_declaration_is_seen(tmp_path: Path) -> None:
    header = tmp_path / "h.h"
    header.write_text(
        "#include <stddef.h>\n#define KVC_ONE 1\n#define kvc_macro(x) (x)\nenum colour { RED = 0, BLUE = 7, };\n"
        "typedef struct thing thing;\ntypedef void (*call)(int a,\n    char *b);\n"
        "typedef struct pair { int first; char more[4]; void (*then)(int); } pair;\n"
        "static inline int f(void) {\n    return 1;\n}\nint *g(const thing *t,\n      size_t n);\n"
    )
    assert parse(header) == Header(
        macros=["KVC_ONE"],
        enums={"colour": ["RED", "BLUE"]},
        structs={"pair": ["first", "more", "then"]},
        types=["typedef struct thing thing", "typedef void(*call)(int a, char *b)"],
        functions=["int *g(const thing *t, size_t n)"],
    )


def test_what_is_not_understood_is_an_error(tmp_path: Path) -> None:
    header = tmp_path / "h.h"
    header.write_text("extern int variable;\n")
    with pytest.raises(ValueError, match="declaration that this does not understand: extern int variable"):
        parse(header)


def test_the_version_of_the_interface_is_in_the_snapshot() -> None:
    version = next(
        line.split()[-1].rstrip(";")
        for line in (ROOT / "kvcache-capi/src/version.rs").read_text().splitlines()
        if line.startswith("pub const KVC_ABI_VERSION")
    )
    assert f"KVC_ABI_VERSION = {version}" in COMMITTED.read_text().splitlines()
