#!/usr/bin/env bash
# Installs the wheel for the end-to-end suites: install_wheel.sh [WHEEL]. Prints the folder of the environment.
#
# The environment is this checkout's own and nearly empty: the wheel, and a reference to the cached vLLM environment,
# which stays as it was made. So it takes seconds, and checkouts do not see each other's wheels. Without WHEEL
# the environment has vLLM only, which is enough for the baseline suite.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

vllm_env="$("$REPO/scripts/ensure_vllm_env.sh")"
tools="$("$REPO/scripts/ensure_dev_tools.sh")"
packages="$("$vllm_env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

if [ "$(cat "$WHEEL_VENV/.vllm" 2>/dev/null)" != "$vllm_env" ]; then
  rm -rf "$WHEEL_VENV"
  "$tools/bin/uv" venv -q --python "$vllm_env/bin/python" "$WHEEL_VENV" >&2
  own="$("$WHEEL_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  # `addsitedir` rather than the bare path, so that .pth files in there work as well.
  printf 'import site; site.addsitedir(%s)\n' "'$packages'" >"$own/vllm-environment.pth"
  printf '%s' "$vllm_env" >"$WHEEL_VENV/.vllm"
fi
if [ "$#" -gt 0 ]; then
  VIRTUAL_ENV="$WHEEL_VENV" "$tools/bin/uv" pip install -q --no-deps --reinstall "$1" </dev/null >&2
fi
echo "$WHEEL_VENV"
