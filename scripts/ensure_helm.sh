#!/usr/bin/env bash
# Prints the folder of a Python environment with Helm's own library (bound by helm-python-sdk) and a YAML reader, making it
# first if needed: 75 MB to download, 350 MB on disk.
#
# Exit status 3 means that it cannot be had on this machine; the reason is the last line on stderr.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

cannot() { printf 'cannot be had: %s\n' "$*" >&2; exit 3; }

lock="$REPO/scripts/locks/helm.txt"
env="$KVCACHE_DEV_CACHE/helm-$(digest "$lock" "$0")"
mkdir -p "$KVCACHE_DEV_CACHE"
if [ ! -e "$env/.complete" ]; then
  exec 9>"$KVCACHE_DEV_CACHE/.helm.lock"
  flock 9
  if [ ! -e "$env/.complete" ]; then
    say "making the environment with Helm's library"
    rm -rf "$env"
    "$PYTHON" -m venv "$env" >&2
    "$env/bin/python" -m pip install -q --disable-pip-version-check --no-input --no-deps --only-binary :all: \
      -r "$lock" </dev/null >"$env/pip.log" 2>&1 || cannot "pip install failed: $(tail -n 1 "$env/pip.log")"
    "$env/bin/python" -c 'import helm_python, yaml' >"$env/import.log" 2>&1 ||
      cannot "its library cannot be loaded here: $(tail -n 1 "$env/import.log")"
    # The library lies in the wheel three times, under three names.
    lib="$(echo "$env"/lib/python3*/site-packages/helm_python/lib)"
    for name in "$lib"/libhelm_c.so.*; do
      [ -e "$name" ] && ln -f "$lib/libhelm_c.so" "$name"
    done
    touch "$env/.complete"
  fi
  exec 9>&-
fi
echo "$env"
