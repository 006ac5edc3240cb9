#!/usr/bin/env bash
# Checks that kernels/prebuilt/ is what the sources, the flags and the pinned compiler make. First by SHA-256 sums, without
# any compiler; then by compiling again and comparing all bytes, which is skipped, and said so, where the compiler cannot be had.
# With it come CUDA's headers, against which the library that stands in for a driver in tests is checked.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

remedy="run scripts/build_kernels.sh and commit kernels/prebuilt/"
cd "$REPO"
sha256sum --check --strict --quiet kernels/prebuilt/SHA256SUMS >&2 ||
  die "the committed kernels are not those of the sources, the flags or the compiler's pins: $remedy"
say "kernels: the sums of sources, flags, compiler and image agree"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
status=0
"$REPO/scripts/build_kernels.sh" "$folder" 2>"$folder/log" || status=$?
if [ "$status" -eq 3 ]; then
  say "kernels: SKIPPED compiling again and comparing: the compiler $(tail -n 1 "$folder/log")"
  exit 0
fi
if [ "$status" -ne 0 ]; then
  cat "$folder/log" >&2
  die "the kernels do not compile"
fi
cmp "$folder/paged_copy.fatbin" kernels/prebuilt/paged_copy.fatbin ||
  die "compiled again, the kernels differ from the committed ones: $remedy"
say "kernels: compiled again, every byte is as committed"

include="$(dirname "$("$REPO/scripts/ensure_cuda_compiler.sh")")/include"
stand_in=kvcache-cuda/tests/cuda_driver/libcuda.c
cc -fsyntax-only -Wall -Wextra -Werror -DCUDA_HEADERS -I"$include" "$stand_in" >&2 ||
  die "$stand_in does not agree with CUDA's headers"
say "kernels: the tests' stand-in for the driver agrees with CUDA's headers"
