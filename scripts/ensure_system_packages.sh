#!/usr/bin/env bash
# Installs the Debian packages that are missing; needs root (or sudo) only when something is missing.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

missing=()
need() { # need PACKAGE COMMAND...: the package is missing when the command fails
  local package="$1"
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
need gcc command -v gcc                                  # links Rust, builds the CUDA stand-ins
need g++ command -v g++                                  # tests of the CUDA kernels on the CPU
need libc6-dev test -e /usr/include/stdio.h
need binutils command -v readelf
need make command -v make
need python3 command -v "$PYTHON"
need python3-venv "$PYTHON" -c 'import venv, ensurepip'
need libnuma1 sh -c 'ldconfig -p | grep -q libnuma.so.1' # vLLM's CPU kernels link to it
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
need util-linux command -v flock
need pkg-config command -v pkg-config                    # how C programs find an installed library
need valgrind command -v valgrind                        # the C examples are run under it
need curl command -v curl                                # a test runs the quick start as it stands

if [ "${#missing[@]}" -gt 0 ]; then
  say "installing Debian packages: ${missing[*]}"
  command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get: ${missing[*]}"
  root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing, and only root can install them: ${missing[*]}"
    root=(sudo)
  fi
  export DEBIAN_FRONTEND=noninteractive
  "${root[@]}" apt-get update -q >&2
  "${root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null >&2
fi

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' ||
  die "$PYTHON is $("$PYTHON" -V 2>&1), vLLM $VLLM_VERSION needs 3.11 to 3.14; set PYTHON to one of these"
