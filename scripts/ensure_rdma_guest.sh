#!/usr/bin/env bash
# Prints a folder with what a small virtual machine with soft RoCE needs: QEMU, an uncompressed kernel, its RDMA modules,
# libibverbs. Installs nothing and needs no root: packages are downloaded and unpacked into the cache.
#
# Exit status 3 means that they cannot be had on this machine; the reason is the last line on stderr.
#
#   qemu/        unpacked packages of QEMU, as far as this system lacks them
#   guest/       unpacked packages of the guest's programs and libraries
#   vmlinux      the kernel as ELF: QEMU enters it directly (PVH) and saves the BIOS and the decompression
#   modules/     kernel modules without debug information; `order` lists them in the order of loading, `order-share`
#                those that a folder of the host needs, shared by 9p
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

cannot() { printf 'cannot be had: %s\n' "$*" >&2; exit 3; }

[ "$(uname -m)" = x86_64 ] || cannot "the guest is for x86_64, this is $(uname -m)"
for command in apt-get apt-cache dpkg strip; do
  command -v "$command" >/dev/null || cannot "$command is missing: the guest is made of Debian packages"
done

folder="$KVCACHE_DEV_CACHE/rdma-guest-$(digest "$0" "$REPO/scripts/rdma_guest_kernel.py")"
if [ -e "$folder/.complete" ]; then
  echo "$folder"
  exit
fi
mkdir -p "$KVCACHE_DEV_CACHE"
exec 9>"$KVCACHE_DEV_CACHE/.rdma-guest.lock"
flock 9
if [ -e "$folder/.complete" ]; then
  echo "$folder"
  exit
fi

say "making the guest with soft RoCE (QEMU, a kernel, its RDMA modules)"
rm -rf "$folder"
mkdir -p "$folder"/{lists/partial,archives/partial,qemu,guest,kernel,modules}
# Lists of our own: the system's may be missing or old, and only root may change them.
apt=(-q -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder" -o APT::Sandbox::User=
  -o Acquire::Retries=3 -o Acquire::http::Timeout=30)
apt-get "${apt[@]}" update >"$folder/update.log" 2>&1 || cannot "apt-get update failed: $(tail -n 1 "$folder/update.log")"

# unpack INTO PACKAGE...
unpack() {
  local into="$1" debs="$folder/debs"
  shift
  mkdir -p "$debs"
  (cd "$debs" && apt-get "${apt[@]}" download "$@" >"$folder/download.log" 2>&1) ||
    cannot "downloading $* failed: $(tail -n 1 "$folder/download.log")"
  for deb in "$debs"/*.deb; do dpkg -x "$deb" "$into"; done
  rm -rf "$debs"
}
# missing PACKAGE...: the packages with what they depend on, less what this system has.
missing() { apt-get "${apt[@]}" install -s --no-install-recommends "$@" 2>/dev/null | awk '$1 == "Inst" {print $2}'; }

if ! command -v qemu-system-x86_64 >/dev/null; then
  mapfile -t packages < <(missing qemu-system-x86)
  [ "${#packages[@]}" -gt 0 ] || cannot "there is no package qemu-system-x86"
  unpack "$folder/qemu" "${packages[@]}"
fi
unpack "$folder/guest" busybox-static libibverbs1 ibverbs-providers libnl-3-200 libnl-route-3-200 iproute2 libmnl0

kernel="$(apt-cache "${apt[@]}" depends linux-image-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')"
[ -n "$kernel" ] || cannot "there is no package linux-image-amd64"
unpack "$folder/kernel" "$kernel"
"$PYTHON" "$REPO/scripts/rdma_guest_kernel.py" "$folder/kernel" "$folder/vmlinux" "$folder/modules" \
  order=crc32_generic,dummy,ib_uverbs,rdma_rxe order-share=virtio_pci,9pnet_virtio,9p || cannot "the kernel of $kernel is of another kind than expected"
for module in "$folder"/modules/*.ko; do strip -d "$module"; done

rm -rf "$folder"/{lists,archives,kernel,pkgcache.bin,srcpkgcache.bin}
touch "$folder/.complete"
echo "$folder"
