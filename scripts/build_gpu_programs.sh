#!/usr/bin/env bash
# Builds what benches/gpu/run.sh takes along to a GPU machine that has no Rust, into dist/: the wheel, the programs of
# kvcache-cuda that need a GPU, and the commit. Prints where they are.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

"$REPO/scripts/build_wheel.sh" >/dev/null
cd "$REPO"
rm -rf dist/gpu
mkdir -p dist/gpu
commit="$(git rev-parse HEAD)"
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit="$commit and changes"
echo "$commit" >dist/wheel/COMMIT
built="$(cargo test --locked --no-run -p kvcache-cuda --test any_driver --test all_kernels 2>&1)" ||
  die "cargo cannot build the programs: $built"
# The path is the last thing in cargo's line for each: "Executable tests/NAME.rs (PATH)".
printf '%s\n' "$built" |
  sed -n 's/^ *Executable tests\/\([a-z_]*\)\.rs (\(.*\))$/\1 \2/p' |
  while read -r name path; do
    strip -o "dist/gpu/$name" "$path"
  done
for name in any_driver all_kernels; do
  [ -x "dist/gpu/$name" ] || die "cargo did not say where $name is"
done
echo "$REPO/dist/gpu $REPO/dist/wheel"
