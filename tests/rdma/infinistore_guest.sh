#!/usr/bin/env bash
# Runs inside of the guest: infinistore_guest.sh PYTHON CHECK_PROGRAM KVCACHE [--bench ROUNDS]. See run_infinistore_guest.sh.
set -uo pipefail
python="$1" check="$2" kvcache="$3"
here="$(dirname "$0")"
cd /run
export PYTHONDONTWRITEBYTECODE=1
ulimit -l unlimited
failed=0

# wait_for FILE TEXT PROCESS: until the text is in the log, 200 s at most, and while the process is there.
wait_for() {
  local _
  for _ in $(seq 400); do
    grep -q "$2" "$1" && return 0
    kill -0 "$3" 2>/dev/null || return 1
    sleep 0.5
  done
  return 1
}

start_theirs() { # start_theirs OPTION...
  "$python" -m infinistore.server --service-port 22345 --manage-port 18080 --prealloc-size 1 --link-type Ethernet \
    --dev-name rxe0 --log-level warning "$@" >/run/their-server.log 2>&1 &
  their_server=$!
  # The port opens before the pool is registered: what says that it is ready is the management server.
  wait_for /run/their-server.log "Uvicorn running\|server started" "$their_server" ||
    { echo "FAILED  their server does not start:"; tail -n 20 /run/their-server.log; failed=1; }
}
start_ours() { # start_ours CAPACITY
  "$kvcache" serve --listen 127.0.0.1:22346 --capacity "$1" >/run/our-server.out 2>/run/our-server.log &
  our_server=$!
  wait_for /run/our-server.out ready "$our_server" ||
    { echo "FAILED  our server does not start:"; cat /run/our-server.log; failed=1; }
}

if [ "${4:-}" = --bench ]; then
  # Values of 4 KiB must not take 64 KiB of its pool: it does not get back what is overwritten.
  start_theirs --minimal-allocate-size 16
  start_ours 256MiB
  RDMA_BENCH_ROUNDS="${5:-7}" "$python" "$here/infinistore_bench.py" "$check" 22345 22346 || { failed=1; tail -n 20 /run/*.log; }
  kill -9 "$their_server" "$our_server"
  exit "$failed"
fi

echo "== our client, their server"
start_theirs
"$check" client 127.0.0.1:22345 "$their_server" || { failed=1; tail -n 5 /run/their-server.log; }
kill -9 "$their_server" 2>/dev/null
wait "$their_server" 2>/dev/null

echo "== their client, our server"
start_ours 64MiB
cat /run/our-server.log
"$python" "$here/infinistore_client.py" 22346 || { failed=1; cat /run/our-server.log; }
kill "$our_server" && wait "$our_server"
exit "$failed"
