#!/usr/bin/env bash
# Prints the path of a redis-server: this system's, or one unpacked into the cache. Installs nothing and needs no root.
#
# Exit status 3 means that it cannot be had on this machine; the reason is the last line on stderr.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"
. "$(dirname "$0")/debian_packages.sh"

cannot() { printf 'cannot be had: %s\n' "$*" >&2; exit 3; }

if command -v redis-server; then exit; fi
folder="$KVCACHE_DEV_CACHE/redis-$(digest "$0")"
mkdir -p "$KVCACHE_DEV_CACHE"
exec 9>"$KVCACHE_DEV_CACHE/.redis.lock"
flock 9
if [ ! -e "$folder/.complete" ]; then
  say "unpacking redis-server"
  rm -rf "$folder"
  debian_release "$folder/debian"
  mapfile -t packages < <(debian_missing "$folder/debian" redis-server)
  [ "${#packages[@]}" -gt 0 ] || cannot "there is no package redis-server"
  debian_unpack "$folder/debian" "$folder/root" "${packages[@]}"
  rm -rf "$folder/debian"
  # Its libraries are beside it and not where it looks for them.
  libraries="$(find "$folder/root" -name 'lib*.so.*' -printf '%h\n' | sort -u | paste -sd:)"
  cat >"$folder/redis-server" <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "$folder/root/usr/bin/redis-server" "\$@"
END
  chmod +x "$folder/redis-server"
  "$folder/redis-server" --version >&2 || cannot "the unpacked redis-server does not run here"
  touch "$folder/.complete"
fi
exec 9>&-
echo "$folder/redis-server"
