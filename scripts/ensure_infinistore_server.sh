#!/usr/bin/env bash
# Prints a folder with the published InfiniStore, server and client: `venv/bin/python -m infinistore.server`. It needs
# libibverbs on LD_LIBRARY_PATH, which the guest with soft RoCE has.
#
# Exit status 3 means that it cannot be had on this machine; the reason is the last line on stderr.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

[ "$(uname -m)" = x86_64 ] || { echo "cannot be had: the wheels of infinistore are for x86_64" >&2; exit 3; }
lock="$REPO/scripts/locks/infinistore-server.txt"
folder="$KVCACHE_DEV_CACHE/infinistore-server-$(digest "$lock" "$0")"
mkdir -p "$KVCACHE_DEV_CACHE"
exec 9>"$KVCACHE_DEV_CACHE/.infinistore-server.lock"
flock 9
if [ ! -e "$folder/.complete" ]; then
  say "making the environment of the published InfiniStore server"
  rm -rf "$folder"
  mkdir -p "$folder"
  "$PYTHON" -m venv "$folder/venv" >&2
  # Without what the wheel names as its requirements: torch, which only its examples use, is 5 GB.
  if ! "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check --no-input --no-deps --only-binary :all: \
    -r "$lock" </dev/null >"$folder/pip.log" 2>&1; then
    echo "cannot be had: pip install failed: $(tail -n 1 "$folder/pip.log")" >&2
    exit 3
  fi
  touch "$folder/.complete"
fi
echo "$folder"
