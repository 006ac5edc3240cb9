#!/usr/bin/env bash
# Stops with a name and a remedy unless the Rust toolchain that Cargo.toml asks for is here. Installs nothing.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

wanted="$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$REPO/Cargo.toml" | head -1)"
[ -n "$wanted" ] || die "Cargo.toml declares no rust-version"
remedy="install Rust $wanted or newer, for example: rustup toolchain install $wanted && rustup default $wanted"

for tool in cargo rustc; do
  command -v "$tool" >/dev/null || die "$tool is not on PATH; $remedy"
done
found="$(cd "$REPO" && rustc --version | cut -d' ' -f2)" || die "rustc does not run; $remedy"
oldest="$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -1)"
[ "$oldest" = "$wanted" ] || die "rustc $found is older than $wanted; $remedy"
