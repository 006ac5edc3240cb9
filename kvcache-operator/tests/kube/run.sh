#!/usr/bin/env bash
# The tests of this folder, on a real etcd, kube-apiserver and kube-controller-manager: run.sh [FILTER]...
#
# Exit status: that of the tests; 0 with a line "SKIPPED" when the control plane cannot be had here.
set -euo pipefail
cd "$(dirname "$0")/../../.."
. scripts/dev_paths.sh

status=0
KUBE_BIN="$(scripts/ensure_kube.sh)" || status=$?
if [ "$status" -eq 3 ]; then
  echo "kube: SKIPPED, nothing was tested: the control plane cannot be had (the reason is above)"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
fi
[ "$status" -eq 0 ] || exit "$status"
KVCACHE_TOOL="$(scripts/build_cli.sh)"
RING_LOAD_TOOL="$(cargo build --locked -q --profile test -p ring-load --message-format=json-render-diagnostics |
  "$PYTHON" -c 'import json, sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])')"
export KUBE_BIN KVCACHE_TOOL RING_LOAD_TOOL
# Tests that need Redis say that they were skipped without it.
if REDIS_SERVER="$(scripts/ensure_redis.sh)"; then export REDIS_SERVER; fi

if cargo nextest --version >/dev/null 2>&1; then
  exec cargo nextest run --locked -p kvcache-operator --test kube --no-fail-fast "$@"
fi
exec cargo test --locked -p kvcache-operator --test kube --no-fail-fast -- "$@"
