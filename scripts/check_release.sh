#!/usr/bin/env bash
# Installs the release wheel into a new environment as a user would, with no Rust in reach, and uses it.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

tools="$("$REPO/scripts/ensure_dev_tools.sh")"
wheels=("$REPO"/dist/release/aibrix_connector-*manylinux_2_28_x86_64.whl)
[ "${#wheels[@]}" -eq 1 ] && [ -f "${wheels[0]}" ] || die "dist/release holds no manylinux_2_28 wheel: run 'make dist'"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
VIRTUAL_ENV="$folder/venv" "$tools/bin/uv" pip install -q "${wheels[0]}" </dev/null
cd "$folder"
env -i PATH=/usr/bin:/bin HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import shutil

import numpy

from aibrix_connector import BlockCache, __version__

assert shutil.which("cargo") is None, "this is not an environment without Rust"
with BlockCache(block_bytes=4096, capacity_bytes=1 << 20) as cache:
    keys = cache.hash_tokens(numpy.arange(64, dtype=numpy.int32))
    data = numpy.random.default_rng(0).integers(0, 256, (len(keys), 4096), dtype=numpy.uint8)
    out = numpy.zeros_like(data)
    assert (cache.put(keys, data), cache.get(keys, out)) == (4, 4)
    assert (out == data).all()
print(f"aibrix-connector {__version__}: the release wheel installs and works without Rust")
PYTHON
