#!/usr/bin/env bash
# Prints the folder of nvcc for the kernels, installed from pinned packages first if needed (104 MB to download, 300 MB on
# disk). Needs neither a GPU nor a driver.
#
# Exit status 3 means that it cannot be had on this machine; the reason is the last line on stderr.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

cannot() { printf 'cannot be had: %s\n' "$*" >&2; exit 3; }

[ "$(uname -sm)" = "Linux x86_64" ] || cannot "the pinned packages are for Linux on x86_64, this is $(uname -sm)"
command -v g++ >/dev/null || cannot "nvcc calls g++, which is missing: apt-get install g++"
lock="$REPO/scripts/locks/cuda-compiler.txt"
folder="$KVCACHE_DEV_CACHE/cuda-compiler-$(digest "$lock" "$0")"
mkdir -p "$KVCACHE_DEV_CACHE"
if [ ! -e "$folder/.complete" ]; then
  exec 9>"$KVCACHE_DEV_CACHE/.cuda-compiler.lock"
  flock 9
  if [ ! -e "$folder/.complete" ]; then
    say "installing the CUDA compiler (104 MB, once)"
    rm -rf "$folder"
    mkdir -p "$folder"
    # Into a plain folder: nothing of it is Python.
    "$PYTHON" -m venv "$folder/venv" >&2 || cannot "python -m venv failed"
    "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check --no-input --no-deps --only-binary :all: \
      --target "$folder/packages" -r "$lock" </dev/null >"$folder/pip.log" 2>&1 ||
      cannot "pip install failed: $(tail -n 1 "$folder/pip.log")"
    rm -rf "$folder/venv"
    # It may not run here, or refuse this machine's g++.
    echo '__global__ void nothing() {}' >"$folder/probe.cu"
    "$folder/packages/nvidia/cu13/bin/nvcc" -cubin "$folder/probe.cu" -o "$folder/probe.cubin" >"$folder/probe.log" 2>&1 ||
      cannot "nvcc does not work: $(tail -n 1 "$folder/probe.log")"
    touch "$folder/.complete"
  fi
  exec 9>&-
fi
echo "$folder/packages/nvidia/cu13/bin"
