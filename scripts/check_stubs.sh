#!/usr/bin/env bash
# Checks that the hand-written _native.pyi describes the compiled module, if a wheel of this checkout is installed.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

if ! "$WHEEL_VENV/bin/python" -c 'import aibrix_connector._native' 2>/dev/null; then
  say "no wheel installed: the type stubs are not compared with the module (make wheel)"
  exit 0
fi
[ -f "$REPO/python/aibrix_connector/_native.pyi" ] || die "python/aibrix_connector/_native.pyi is missing"
tools="$("$REPO/scripts/ensure_dev_tools.sh")"
own="$("$WHEEL_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
cd /
PYTHONPATH="$own" "$tools/bin/python" -m mypy.stubtest aibrix_connector._native
