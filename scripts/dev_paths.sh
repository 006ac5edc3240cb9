# Where the development environments live. Sourced by the other scripts; sets variables and changes nothing.
#
#   REPO               the root of this checkout
#   KVCACHE_DEV_CACHE  everything that is expensive to make and safe to delete (default ~/.cache/kvcache-dev)
#   VLLM_VERSION       the vLLM release that the end-to-end suites run against
#   WHEEL_VENV         this checkout's environment: our wheel on top of the cached vLLM environment
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
KVCACHE_DEV_CACHE="${KVCACHE_DEV_CACHE:-$HOME/.cache/kvcache-dev}"
VLLM_VERSION="${VLLM_VERSION:-0.32.0}"
WHEEL_VENV="$REPO/.venv-vllm-$VLLM_VERSION"
PYTHON="${PYTHON:-python3}"
export KVCACHE_DEV_CACHE VLLM_VERSION

# uv ships its own list of certificate authorities; behind a company proxy the system's list is the right one.
if [ -z "${SSL_CERT_FILE:-}" ] && [ -f /etc/ssl/certs/ca-certificates.crt ]; then
  export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
fi
# The cache of uv and the environments may be on different file systems; a copy is then the only way.
export UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# digest FILE...: twelve hex digits that name the content of the files and the Python that will run them.
digest() {
  { "$PYTHON" -c 'import sys, sysconfig; print(sys.version_info[:3], sysconfig.get_platform(), sys.base_prefix)'
    cat "$@"; } | sha256sum | cut -c1-12
}
