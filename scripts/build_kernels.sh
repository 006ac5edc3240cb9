#!/usr/bin/env bash
# Compiles the kernels: build_kernels.sh [FOLDER]. Without a folder it writes kernels/prebuilt/ and its sums, to be committed
# with a change of the sources.
#
# Exit status 3 means that the compiler cannot be had on this machine; the reason is the last line on stderr.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

prebuilt="$REPO/kernels/prebuilt"
folder="${1:-$prebuilt}"
compiler="$("$REPO/scripts/ensure_cuda_compiler.sh")"
mkdir -p "$folder"
read -r -a flags <"$REPO/kernels/nvcc.flags"
# From the folder of the sources, so that no path of this machine can get into the result.
(cd "$REPO/kernels" && PATH="$compiler:$PATH" nvcc "${flags[@]}" paged_copy.cu -o "$folder/paged_copy.fatbin")
if [ "$folder" = "$prebuilt" ]; then
  cd "$REPO"
  sha256sum kernels/paged_copy.cu kernels/paged_copy.h kernels/nvcc.flags scripts/locks/cuda-compiler.txt \
    kernels/prebuilt/paged_copy.fatbin >"$prebuilt/SHA256SUMS"
  say "written: kernels/prebuilt/paged_copy.fatbin, $(stat -c %s "$prebuilt/paged_copy.fatbin") bytes, and SHA256SUMS"
fi
