#!/usr/bin/env bash
# Real RDMA verbs on any x86-64 machine: boots a virtual machine of a few megabytes whose kernel has a software RDMA
# device (soft RoCE), and runs the checks of tests/rdma/guest in it. No root, no network card, no acceleration.
#
# Exit status: that of the checks; 0 with a line "SKIPPED" when QEMU or the kernel cannot be had here.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/dev_paths.sh

status=0
guest="$(scripts/ensure_rdma_guest.sh)" || status=$?
if [ "$status" -eq 3 ]; then
  echo "rdma-guest: SKIPPED, nothing was tested: QEMU or the kernel for it cannot be had (the reason is above)"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
fi
[ "$status" -eq 0 ] || exit "$status"

# The profile of the tests: optimised, and most of it is built already.
program="$(cargo build --locked -q --profile test -p rdma-guest --message-format=json-render-diagnostics |
  "$PYTHON" -c 'import json, sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])')"
exec tests/rdma/boot_guest.sh "$guest" "$program" "$@"
