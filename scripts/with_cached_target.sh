#!/usr/bin/env bash
# Runs a command with a cargo target folder that outlives this checkout: with_cached_target.sh COMMAND...
#
# A fresh clone has no build products, and its path varies. Dependencies keep theirs across paths; our own crates are
# built again, because cargo decides by the times of the files: a clone that is older than the products of another
# clone would be taken for unchanged. Two things make that impossible. The folder is locked while the command
# runs (a second run takes the next folder), and every file of the checkout is touched once the lock is held.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

# What incremental builds keep is of use in the same checkout only, and grows to twice the size of everything else.
export CARGO_INCREMENTAL=0
bytes_max=$((16 << 30)) # cargo never throws anything away; a full build of the workspace is a tenth of this
folders="$KVCACHE_DEV_CACHE/target/$( (cd "$REPO" && rustc --version 2>/dev/null || echo none) | tr -c 'a-zA-Z0-9.\n' - | cut -c1-32)"
mkdir -p "$folders"

for slot in 0 1 2 3 4 5 6 7; do
  exec 9>"$folders/$slot.lock"
  if flock -n 9; then
    target="$folders/$slot"
    if [ -d "$target" ] && [ "$(du -sb "$target" | cut -f1)" -gt "$bytes_max" ]; then
      say "throwing away $target, which has grown too large"
      rm -rf "$target"
    fi
    mkdir -p "$target"
    (cd "$REPO" && git ls-files -z | xargs -0 touch -c --)
    CARGO_TARGET_DIR="$target" "$@"
    exit
  fi
  exec 9>&-
done
die "all cached target folders are in use"
