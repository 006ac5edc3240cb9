#!/usr/bin/env bash
# Runs the contract suite and part of the end-to-end suite against several vLLM releases, each in its own environment:
# vllm_matrix.sh [VERSION...]. Every release downloads vLLM once; torch is shared.
set -uo pipefail
. "$(dirname "$0")/dev_paths.sh"

versions=("$@")
[ "${#versions[@]}" -gt 0 ] || versions=(0.29.0 0.30.0 0.31.0 0.32.0)
cd "$REPO"
wheel="${WHEEL-$("$REPO/scripts/build_wheel.sh")}" || exit 1
table=""
failed=0
for version in "${versions[@]}"; do
  printf '\n==== vLLM %s\n' "$version"
  started=$SECONDS
  if env="$(VLLM_VERSION="$version" scripts/install_wheel.sh ${wheel:+"$wheel"})" &&
    VLLM_VERSION="$version" "$env/bin/python" -m pytest tests/contract tests/e2e -m "matrix" -q </dev/null; then
    result=passed
  else
    result=FAILED
    failed=1
  fi
  table+="$(printf 'vLLM %-10s %-8s %5d s' "$version" "$result" "$((SECONDS - started))")"$'\n'
done
printf '\n==== vLLM releases\n%s' "$table"
exit "$failed"
