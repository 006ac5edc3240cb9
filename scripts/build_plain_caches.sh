#!/usr/bin/env bash
# Builds benches/compare/rust, our cache beside foyer and moka, and prints the path of the program.
#
# Its build products are kept outside of the checkout, for each checkout, compiler and set of dependencies apart:
# cargo decides by the times of files, so that two checkouts cannot share theirs.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

"$REPO/scripts/ensure_rust.sh"
cd "$REPO/benches/compare/rust"
CARGO_TARGET_DIR="$KVCACHE_DEV_CACHE/plain-caches-$({ cat Cargo.lock; rustc -vV; echo "$REPO"; } | digest /dev/stdin)"
export CARGO_TARGET_DIR CARGO_INCREMENTAL=0
cargo build --release --locked --quiet "$@" </dev/null >&2
echo "$CARGO_TARGET_DIR/release/plain-caches"
