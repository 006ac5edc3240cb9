#!/usr/bin/env bash
# Prints a folder with the published InfiniStore client: `venv/bin/python` imports `infinistore`, with `libraries` on
# LD_LIBRARY_PATH. Installs nothing and needs no root.
#
# Exit status 3 means that it cannot be had on this machine; the reason is the last line on stderr.
#
# The wheel asks for torch, FastAPI and others, 5.5 GB together, which its server and its examples use. The client
# imports numpy only, so that is all that is installed. Its module is linked to libibverbs, needed for its import even
# where only TCP is used: where the system has none, Debian's packages are unpacked into the cache.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

cannot() { printf 'cannot be had: %s\n' "$*" >&2; exit 3; }

[ "$(uname -m)" = x86_64 ] || cannot "the wheels of infinistore are for x86_64, this is $(uname -m)"
lock="$REPO/scripts/locks/infinistore-client.txt"
folder="$KVCACHE_DEV_CACHE/infinistore-client-$(digest "$lock" "$0")"
if [ -e "$folder/.complete" ]; then
  echo "$folder"
  exit
fi
mkdir -p "$KVCACHE_DEV_CACHE"
exec 9>"$KVCACHE_DEV_CACHE/.infinistore-client.lock"
flock 9
if [ -e "$folder/.complete" ]; then
  echo "$folder"
  exit
fi

say "making the environment of the published InfiniStore client"
rm -rf "$folder"
mkdir -p "$folder"/{lists/partial,archives/partial,debs,libraries}
"$PYTHON" -m venv "$folder/venv" >&2
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check --no-input --no-deps --only-binary :all: \
  -r "$lock" </dev/null >"$folder/pip.log" 2>&1 || cannot "pip install failed: $(tail -n 1 "$folder/pip.log")"

if ! ldconfig -p | grep -q 'libibverbs\.so\.1 '; then
  for command in apt-get dpkg; do
    command -v "$command" >/dev/null || cannot "libibverbs.so.1 is missing, and so is $command"
  done
  # Lists of our own: the system's may be missing or old, and only root may change them.
  apt=(-q -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder" -o APT::Sandbox::User=
    -o Acquire::Retries=3 -o Acquire::http::Timeout=30)
  apt-get "${apt[@]}" update >"$folder/apt.log" 2>&1 || cannot "apt-get update failed: $(tail -n 1 "$folder/apt.log")"
  (cd "$folder/debs" &&
    apt-get "${apt[@]}" download libibverbs1 libnl-3-200 libnl-route-3-200 >"$folder/apt.log" 2>&1) ||
    cannot "downloading libibverbs1 failed: $(tail -n 1 "$folder/apt.log")"
  for deb in "$folder"/debs/*.deb; do dpkg -x "$deb" "$folder/debs/root"; done
  find "$folder/debs/root" -name 'lib*.so.*' -exec cp -P {} "$folder/libraries/" \;
fi
rm -rf "$folder/lists" "$folder/archives" "$folder/debs"

LD_LIBRARY_PATH="$folder/libraries" "$folder/venv/bin/python" -c 'import infinistore' >&2 ||
  die "the InfiniStore client is installed in $folder and cannot be imported"
touch "$folder/.complete"
echo "$folder"
