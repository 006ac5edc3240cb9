#!/usr/bin/env bash
# Builds the tool `kvcache` in the development profile and prints its path. Seconds when nothing has changed.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

"$REPO/scripts/ensure_rust.sh"
cd "$REPO"
cargo build --locked --quiet -p kvcache-cli --message-format json </dev/null |
  "$PYTHON" -c '
import json
import sys

messages = [json.loads(line) for line in sys.stdin]
print(*{message["executable"] for message in messages if message.get("executable", None)})
'
