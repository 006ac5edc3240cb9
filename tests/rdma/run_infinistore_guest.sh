#!/usr/bin/env bash
# The published InfiniStore over real RDMA verbs (soft RoCE in a virtual machine): our client against its server, its
# client against ours, and a comparison of their rates. Minutes, and 5 GiB of memory: it pins 512 MiB for a connection
# on each side.
#
# With --bench FILE it measures instead: our client and server against theirs, medians of interleaved runs, a table on the
# standard output and everything as JSON in FILE. RDMA_BENCH_ROUNDS is the number of runs of each. On an idle machine!
#
# Exit status: that of the checks; 0 with a line "SKIPPED" when the packages cannot be had here.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/dev_paths.sh

skip() {
  echo "infinistore-guest: SKIPPED, nothing was tested: $1 cannot be had (the reason is above)"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
}
status=0
guest="$(scripts/ensure_rdma_guest.sh)" || status=$?
[ "$status" -ne 3 ] || skip "QEMU or the kernel for it"
[ "$status" -eq 0 ] || exit "$status"
infinistore="$(scripts/ensure_infinistore_server.sh)" || status=$?
[ "$status" -ne 3 ] || skip "InfiniStore"
[ "$status" -eq 0 ] || exit "$status"

# The profile of the tests: optimised, and most of it is built already.
programs="$(cargo build --locked -q --profile test -p rdma-guest -p kvcache-cli --message-format=json-render-diagnostics |
  "$PYTHON" -c 'import json, sys
print(*[m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")], sep="\n")')"
check="$(grep '/rdma-guest$' <<<"$programs")"
kvcache="$(grep '/kvcache$' <<<"$programs")"
export RDMA_GUEST_SHARE=1 RDMA_GUEST_MIB=5120 RDMA_GUEST_CPUS=2 RDMA_GUEST_SECONDS="${RDMA_GUEST_SECONDS:-600}"
in_guest=(tests/rdma/boot_guest.sh "$guest" /bin/bash "$PWD/tests/rdma/infinistore_guest.sh"
  "$infinistore/venv/bin/python" "$check" "$kvcache")
if [ "${1:-}" != --bench ]; then
  exec "${in_guest[@]}" "$@"
fi
results="${2:?"--bench needs the name of a file for the results"}"
export RDMA_GUEST_MIB=6144 RDMA_GUEST_SECONDS=1500
console="$(mktemp)"
trap 'rm -f "$console"' EXIT
"${in_guest[@]}" --bench "${RDMA_BENCH_ROUNDS:-7}" >"$console" || status=$?
grep -v '^results-json' "$console" || true
sed -n 's/^results-json //p' "$console" >"$results"
[ "$status" -eq 0 ] && [ -s "$results" ] || { echo "no results: the comparison failed"; exit 1; }
echo "results: $results"
