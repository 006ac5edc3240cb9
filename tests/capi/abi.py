"""The binary interface of the C library as a text: what programs that are compiled already rely on.

`make capi-abi` writes it to include/kvcache.abi, and a test compares: what changes there changes on purpose. Names come
from the header, numbers from a C program that is compiled with it, and symbols from the library.
"""

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "include" / "kvcache.abi"
TITLE = """\
# The binary interface of libkvcache. Made by `make capi-abi`; compared by tests/capi/test_abi.py.
# A line that is gone or changed breaks programs that are compiled already: it takes another soname.
# A new line grows KVC_ABI_VERSION. Both are written into CHANGELOG.md.
"""


@dataclass(frozen=True)
class Header:
    """The declarations of a header, in its order."""

    macros: list[str]
    """Names of numbers."""
    enums: dict[str, list[str]]
    structs: dict[str, list[str]]
    types: list[str]
    """Other type definitions, as they stand there."""
    functions: list[str]


def parse(path: Path) -> Header:
    """Returns what a header made by cbindgen declares; other shapes of declarations are an error."""
    own = _preprocessed(path)
    enums, structs, types, functions = {}, {}, [], []
    while own:
        if match := re.match(r"enum (\w+)\s*\{(.*?)\}\s*;", own, re.DOTALL):
            enums[match[1]] = re.findall(r"(\w+)\s*=", match[2])
        elif match := re.match(r"typedef struct (\w+)\s*\{(.*?)\}\s*\w+\s*;", own, re.DOTALL):
            structs[match[1]] = [_field(text) for text in match[2].split(";") if text.strip()]
        elif match := re.match(r"static inline.*?\n\}", own, re.DOTALL):
            pass  # compiled into the program: no part of the library
        elif match := re.match(r"typedef [^;{]*;", own):
            types.append(_one_line(match[0]))
        elif match := re.match(r"[\w\s*]+\([^;{]*\)\s*;", own):
            functions.append(_one_line(match[0]))
        else:
            raise ValueError(f"{path} has a declaration that this does not understand: {own[:200]}")
        own = own[match.end() :].strip()
    text = path.read_text()
    macros = re.findall(r"^#define (KVC_\w+) [-0-9A-Fa-fxuUlL()]+$", text, re.MULTILINE)
    return Header(macros, enums, structs, types, sorted(functions, key=function_name))


def _preprocessed(path: Path) -> str:
    """The header's own lines, without comments and without what it includes."""
    command = ["gcc", "-std=c99", "-E", "-x", "c", str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    own, is_own = [], False
    for line in lines:
        if marker := re.match(r'# \d+ "(.*?)"', line):
            is_own = marker[1] == str(path)
        elif is_own:
            own.append(line)
    return "\n".join(own).strip()


def _field(declaration: str) -> str:
    """The name of a field, also of one that is an array or points to a function."""
    name = re.search(r"\(\s*\*\s*(\w+)\s*\)", declaration) or re.search(r"(\w+)\s*(\[[^]]*\])?\s*$", declaration)
    if name is None:
        raise ValueError(f"a field that this does not understand: {declaration}")
    return name[1]


def function_name(declaration: str) -> str:
    """Returns the name in a function's declaration."""
    return declaration.split("(")[0].split()[-1].lstrip("*")


def _one_line(declaration: str) -> str:
    return re.sub(r"\s+", " ", declaration).strip().removesuffix(";").replace(" (", "(")


def snapshot(header: Path, library: Path) -> str:
    """Returns the interface of a header and of the library that goes with it."""
    declared = parse(header)
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True
    ).stdout
    exported = sorted(line.split()[-1] for line in symbols.splitlines())
    soname = subprocess.run(["readelf", "-d", "-W", str(library)], check=True, capture_output=True, text=True).stdout
    parts = [
        TITLE,
        "\n".join(re.findall(r"\(SONAME\).*\[(.*)\]", soname)),
        "\n# symbols\n" + "\n".join(exported),
        _measured(header, declared),
        "\n# types\n" + "\n".join(declared.types),
        "\n# functions\n" + "\n".join(declared.functions),
    ]
    return "\n".join(parts) + "\n"


def _measured(header: Path, declared: Header) -> str:
    """Every number that a compiler takes from the header."""
    prints = ['puts("\\n# numbers");']
    prints += [f'printf("{name} = %lld\\n", (long long){name});' for name in declared.macros]
    for name, values in declared.enums.items():
        prints.append(f'printf("\\n# enum %s: %zu bytes\\n", "{name}", sizeof({name}));')
        prints += [f'printf("{value} = %lld\\n", (long long){value});' for value in values]
    for name, fields in declared.structs.items():
        prints.append(f'printf("\\n# struct %s: %zu bytes\\n", "{name}", sizeof({name}));')
        for field in fields:
            place = f"offsetof({name}, {field}), sizeof((({name} *)0)->{field})"
            prints.append(f'printf("{field}: offset %zu, %zu bytes\\n", {place});')
    body = "\n    ".join(prints)
    program = f'#include <stddef.h>\n#include <stdio.h>\n#include "{header}"\nint main(void) {{\n    {body}\n}}\n'
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "measure.c", Path(folder) / "measure"
        source.write_text(program)
        subprocess.run(["gcc", "-std=c99", "-Wall", "-Werror", str(source), "-o", str(binary)], check=True)
        return subprocess.run([binary], check=True, capture_output=True, text=True).stdout.rstrip()


def main() -> None:
    """Writes the snapshot of a library."""
    parser = argparse.ArgumentParser(description="writes include/kvcache.abi")
    parser.add_argument("library", type=Path, help="libkvcache.so, as it was built from this checkout")
    COMMITTED.write_text(snapshot(ROOT / "include" / "kvcache.h", parser.parse_args().library))


if __name__ == "__main__":
    main()
