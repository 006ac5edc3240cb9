#!/usr/bin/env bash
# Prints the folder of a Python environment with uv, maturin, ruff, mypy, pytest, cmake and matplotlib, making it first if
# needed.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

lock="$REPO/scripts/locks/dev-tools.txt"
env="$KVCACHE_DEV_CACHE/dev-tools-$(digest "$lock" "$0")"
mkdir -p "$KVCACHE_DEV_CACHE"
if [ ! -e "$env/.complete" ]; then
  exec 9>"$KVCACHE_DEV_CACHE/.dev-tools.lock"
  flock 9
  if [ ! -e "$env/.complete" ]; then
    "$REPO/scripts/ensure_system_packages.sh"
    say "making the developer tools environment (uv, maturin, ruff, mypy, pytest, cmake, matplotlib)"
    rm -rf "$env"
    "$PYTHON" -m venv "$env" >&2
    "$env/bin/python" -m pip install -q --disable-pip-version-check --no-input "$(grep '^uv==' "$lock")" >&2
    VIRTUAL_ENV="$env" "$env/bin/uv" pip install -q --no-deps -r "$lock" </dev/null >&2
    touch "$env/.complete"
  fi
  exec 9>&-
fi
echo "$env"
