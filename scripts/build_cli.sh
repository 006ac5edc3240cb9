#!/usr/bin/env bash
# Builds the tool `kvcache` and prints its path. In the profile of the tests, since these have built most of it already.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

"$REPO/scripts/ensure_rust.sh"
cd "$REPO"
cargo build --locked --quiet --profile test -p kvcache-cli --message-format json </dev/null |
  "$PYTHON" -c '
import json
import sys

messages = [json.loads(line) for line in sys.stdin]
print(*{message["executable"] for message in messages if message.get("executable", None)})
'
