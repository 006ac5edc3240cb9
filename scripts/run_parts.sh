#!/usr/bin/env bash
# Runs make targets one after the other, all of them even if one fails: run_parts.sh TARGET...
# Ends with a table of wall times; the exit status is 1 if any part failed.
set -uo pipefail
cd "$(dirname "$0")/.."

table=""
failed=0
total=$SECONDS
for part in "$@"; do
  printf '\n==== %s\n' "$part"
  started=$SECONDS
  if "${MAKE:-make}" --no-print-directory "$part" </dev/null; then
    result=passed
  else
    result=FAILED
    failed=1
  fi
  table+="$(printf '%-16s %-8s %5d s' "$part" "$result" "$((SECONDS - started))")"$'\n'
done
printf '\n==== wall time\n%s%-16s %-8s %5d s\n' "$table" total "$([ "$failed" -eq 0 ] && echo passed || echo FAILED)" \
  "$((SECONDS - total))"
exit "$failed"
