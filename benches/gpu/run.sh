#!/usr/bin/env bash
# Checks and measures the CUDA side on this machine's GPU: run.sh [--fake] [--quick] [--out DIR]. See README.md beside it.
#
# Needs Python 3.11 or newer with torch for CUDA and NumPy, and `aibrix_connector`: importable, or as a wheel in
# dist/wheel/ (scripts/build_wheel.sh), which is unpacked into a temporary folder. No network, compiler or Rust.
set -euo pipefail
repo="$(cd "$(dirname "$0")/../.." && pwd)"
python="${PYTHON:-python3}"

die() {
  echo "run.sh: $1" >&2
  exit 2
}

command -v "$python" >/dev/null || die "there is no $python: set PYTHON to a Python 3.11 or newer that has torch"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$("$python" --version) is too old: 3.11 or newer is needed"
for module in numpy torch; do
  "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" ||
    die "$python has no $module: set PYTHON to one that has"
done

cd "$repo"
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c 'import aibrix_connector' 2>/dev/null; then
  wheels=(dist/wheel/aibrix_connector-*.whl)
  [ -f "${wheels[0]}" ] || die "aibrix_connector is not installed, and there is no wheel in dist/wheel/: build one with scripts/build_wheel.sh"
  [ "${#wheels[@]}" -eq 1 ] || die "there are several wheels in dist/wheel/: leave one"
  unpacked="$(mktemp -d)"
  trap 'rm -rf "$unpacked"' EXIT
  "$python" -m zipfile -e "${wheels[0]}" "$unpacked"
  export PYTHONPATH="$unpacked:$PYTHONPATH" KVCACHE_WHEEL="${wheels[0]} $(sha256sum "${wheels[0]}" | cut -c1-16)"
  said="$("$python" -c 'import aibrix_connector' 2>&1)" || die "${wheels[0]} does not work here: ${said##*$'\n'}"
fi
if [ -z "${KVCACHE_COMMIT:-}" ] && [ -f dist/wheel/COMMIT ]; then
  KVCACHE_COMMIT="$(cat dist/wheel/COMMIT)"
  export KVCACHE_COMMIT
fi

# The program bounds itself; this is for a driver that hangs.
status=0
timeout --kill-after=10 475 "$python" -m benches.gpu "$@" || status=$?
[ "$status" -ne 124 ] && [ "$status" -ne 137 ] || echo "run.sh: stopped after 475 s; results so far were written" >&2
exit "$status"
