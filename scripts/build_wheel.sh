#!/usr/bin/env bash
# Builds the wheel into dist/ and prints its path. Seconds when nothing has changed.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

"$REPO/scripts/ensure_rust.sh"
tools="$("$REPO/scripts/ensure_dev_tools.sh")"
cd "$REPO"
rm -rf dist/wheel
"$tools/bin/maturin" build --release --locked --quiet --out dist/wheel "$@" </dev/null >&2
wheels=(dist/wheel/aibrix_connector-*.whl)
[ "${#wheels[@]}" -eq 1 ] && [ -f "${wheels[0]}" ] || die "maturin did not leave exactly one wheel in dist/wheel"
echo "$REPO/${wheels[0]}"
