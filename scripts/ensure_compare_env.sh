#!/usr/bin/env bash
# Prints the folder of a Python environment with a published package that we compare ourselves with:
# ensure_compare_env.sh NAME, whose packages are pinned in scripts/locks/compare-NAME.txt. torch and numpy come from the
# cached vLLM environment, so that both sides of a comparison have the same ones and nothing large is downloaded.
#
# The last line on stderr says why an environment cannot be had.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

name="${1:-}"
lock="$REPO/scripts/locks/compare-$name.txt"
[ -n "$name" ] && [ -f "$lock" ] || die "no lock file for the peer '$name'; known: $(
  cd "$REPO/scripts/locks" && ls compare-*.txt | sed 's/^compare-//; s/\.txt$//' | tr '\n' ' ')"
vllm_env="$("$REPO/scripts/ensure_vllm_env.sh")"
folder="$KVCACHE_DEV_CACHE/compare-$name-$({ cat "$lock" "$0"; echo "$vllm_env"; } | digest /dev/stdin)"
mkdir -p "$KVCACHE_DEV_CACHE"
if [ ! -e "$folder/.complete" ]; then
  exec 9>"$KVCACHE_DEV_CACHE/.compare-$name.lock"
  flock 9
  if [ ! -e "$folder/.complete" ]; then
    tools="$("$REPO/scripts/ensure_dev_tools.sh")"
    say "making the environment of $name (once)"
    rm -rf "$folder"
    "$tools/bin/uv" venv -q --python "$vllm_env/bin/python" "$folder" >&2
    VIRTUAL_ENV="$folder" "$tools/bin/uv" pip install -q --no-deps -r "$lock" </dev/null >&2
    packages="$("$vllm_env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    own="$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    # `addsitedir` rather than the bare path, so that .pth files in there work as well.
    printf 'import site; site.addsitedir(%s)\n' "'$packages'" >"$own/vllm-environment.pth"
    touch "$folder/.complete"
  fi
  exec 9>&-
fi
echo "$folder"
