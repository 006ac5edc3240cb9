"""Generates empty stand-ins for the CUDA libraries that a CUDA build of torch links to.

The CUDA build of torch names some fifteen CUDA libraries that the dynamic loader must find before `import torch`
succeeds, although a machine without a GPU never calls them. This script reads from torch's own libraries which
names, symbols and symbol versions they ask for, and compiles a small shared object for each: every function
returns 0. For tests on machines without a GPU only.

Usage: cuda_stub_libraries.py TORCH_LIB_FOLDER OUTPUT_FOLDER
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
# Symbols of libraries that do not version theirs; one stand-in is enough for all of them.
UNVERSIONED_SYMBOL = re.compile(
    r"^(cuda|cu[A-Z]|cublas|cudnn|cufft|curand|cusparse|cusolver|nccl|pnccl|nvrtc|nvshmem|cufile|cuFile|cupti"
    r"|nvtx|nvJitLink|__cuda|_ZN?\d*nvshmem|nvml)"
)


def readelf(option: str, library: Path) -> list[str]:
    """Lines of `readelf OPTION -W LIBRARY`."""
    return subprocess.run(
        ["readelf", option, "-W", str(library)], capture_output=True, text=True, check=True
    ).stdout.splitlines()


class Wanted:
    """What torch's libraries ask of the CUDA libraries."""

    def __init__(self, torch_libraries: list[Path]) -> None:
        self.sonames: set[str] = set()
        self.soname_of_version: dict[str, str] = {}
        self.symbols: dict[str, set[tuple[str, str]]] = defaultdict(set)  # soname -> (symbol, version)
        undefined: set[tuple[str, str, str]] = set()  # symbol, version, binding
        defined: set[str] = set()
        for library in torch_libraries:
            self._read_names(library)
            for line in readelf("--dyn-syms", library):
                fields = line.split()
                if len(fields) < 8 or not fields[0].endswith(":"):
                    continue
                symbol, _, version = fields[7].partition("@")
                if fields[6] == "UND":
                    undefined.add((symbol, version.lstrip("@"), fields[4]))
                else:
                    defined.add(symbol)
        runtime = next(name for name in sorted(self.sonames) if name.startswith("libcudart.so"))
        for symbol, version, binding in undefined:
            if symbol in defined:
                continue
            if version in self.soname_of_version:
                self.symbols[self.soname_of_version[version]].add((symbol, version))
            elif not version and binding != "WEAK" and UNVERSIONED_SYMBOL.match(symbol):
                self.symbols[runtime].add((symbol, ""))

    def _read_names(self, library: Path) -> None:
        for line in readelf("-d", library):
            needed = re.search(r"NEEDED.*\[(.+?)\]", line)
            if needed and CUDA_LIBRARY.match(needed[1]):
                self.sonames.add(needed[1])
        soname = ""
        for line in readelf("-V", library):
            if file := re.search(r"File: (\S+)", line):
                soname = file[1]
            if (version := re.search(r"Name: (\S+)\s+Flags", line)) and CUDA_LIBRARY.match(soname):
                self.soname_of_version[version[1]] = soname


def compile_stub(soname: str, wanted: Wanted, output: Path) -> None:
    """Compiles the stand-in for one library into the folder `output`."""
    symbols = wanted.symbols.get(soname, set())
    versions: dict[str, list[str]] = {v: [] for v, name in wanted.soname_of_version.items() if name == soname}
    for symbol, version in sorted(symbols):
        if version:
            versions[version].append(symbol)
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stub.c"), Path(folder, "stub.map")
        names = sorted({symbol for symbol, _ in symbols})
        source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in names) or "int stub;\n")
        command = ["gcc", "-shared", "-fPIC", "-w", "-O0", f"-Wl,-soname,{soname}"]
        if versions:
            script.write_text(
                "".join(
                    f"{version} {{ {'global: ' if members else ''}{' '.join(f'{m};' for m in members)} }};\n"
                    for version, members in versions.items()
                )
            )
            command.append(f"-Wl,--version-script={script}")
        subprocess.run([*command, "-o", str(output / soname), str(source)], check=True)


def main() -> None:
    torch_libraries, output = Path(sys.argv[1]), Path(sys.argv[2])
    # A second run into torch's own folder must not read the stand-ins of the first.
    wanted = Wanted([p for p in sorted(torch_libraries.glob("*.so")) if not CUDA_LIBRARY.match(p.name)])
    output.mkdir(parents=True, exist_ok=True)
    for soname in sorted(wanted.sonames):
        compile_stub(soname, wanted, output)
    print(f"{len(wanted.sonames)} stand-ins for CUDA libraries in {output}")


if __name__ == "__main__":
    main()
