#!/usr/bin/env bash
# Boots the guest with a program as its only task: boot_guest.sh GUEST_FOLDER PROGRAM [ARGUMENT...]
# The exit status is the program's, or 1 if the machine did not come to its end within the time limit.
#
#   RDMA_GUEST_SECONDS  the time limit
#   RDMA_GUEST_MIB      memory of the machine
#   RDMA_GUEST_CPUS     its processors
#   RDMA_GUEST_SHARE    1: the program sees this system's files, for reading only (9p), and /run to write to
set -euo pipefail
guest="$1"
program="$2"
shift 2
seconds_max="${RDMA_GUEST_SECONDS:-150}"
share="${RDMA_GUEST_SHARE:-0}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
root="$work/root"
mkdir -p "$root"/{bin,mod,proc,sys,dev,tmp,run,lib64,etc/libibverbs.d,usr/lib/x86_64-linux-gnu/libibverbs}
ln -s usr/lib "$root/lib"

# A provider of verbs is opened by its path, so that it lies where Debian's library looks.
unpacked="$guest/guest"
libraries="$unpacked/usr/lib/x86_64-linux-gnu:$unpacked/lib/x86_64-linux-gnu"
echo "driver rxe" >"$root/etc/libibverbs.d/rxe.driver"
cp -L "$unpacked"/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav*.so "$root/usr/lib/x86_64-linux-gnu/libibverbs/"
cp -L "$unpacked/usr/lib/x86_64-linux-gnu/libibverbs.so.1" "$root/usr/lib/x86_64-linux-gnu/"
# with_libraries FILE: copies the libraries that it needs, from the guest's packages or else from this system.
with_libraries() {
  local library
  for library in $(LD_LIBRARY_PATH="$libraries" ldd "$1" | grep -oE '/[^ ]+'); do
    case "$library" in
      */ld-linux*) cp -Lu "$library" "$root/lib64/" ;;
      *) cp -Lu "$library" "$root/usr/lib/x86_64-linux-gnu/" ;;
    esac
  done
}
install_program() { # install_program FILE NAME
  cp -L "$1" "$root/bin/$2"
  with_libraries "$1"
}
with_libraries "$root/usr/lib/x86_64-linux-gnu/libibverbs.so.1"
install_program "$(find "$unpacked" -type f -name rdma -path '*bin/rdma' | head -n 1)" rdma
if [ "$share" = 1 ]; then
  mkdir "$root/host"
else
  install_program "$program" check
  strip -d "$root/bin/check"
fi
cp -L "$(find "$unpacked" -type f -name busybox -path '*bin/busybox' | head -n 1)" "$root/bin/busybox"
for name in sh mount insmod cat echo ip mkdir chroot poweroff; do ln -s busybox "$root/bin/$name"; done
cp "$guest"/modules/* "$root/mod/"

cat >"$root/init" <<'INIT'
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
while read -r module; do insmod "/mod/$module" || echo "no module $module"; done </mod/order
ip link set lo up
# Frames of 9000 bytes let the RDMA packets be 4096 long. The address comes first: the device's GID follows from it.
ip link set dummy0 mtu 9000 up && ip addr add 10.9.9.1/24 dev dummy0
rdma link add rxe0 type rxe netdev dummy0 || echo "no soft RoCE device"
ulimit -l unlimited
read -r seconds _ </proc/uptime; echo "guest is up after $seconds s"
if [ -d /host ]; then
  while read -r module; do insmod "/mod/$module" 2>/dev/null; done </mod/order-share
  mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose host /host || echo "no files of the host"
  for folder in proc sys dev; do mount -o bind "/$folder" "/host/$folder"; done
  mount -t tmpfs run /host/run; mkdir -p /host/dev/shm; mount -t tmpfs shm /host/dev/shm
  . /environment
  eval "chroot /host $(cat /arguments)"
else
  eval "check $(cat /arguments)"
fi
echo "rdma-guest exit status $?"
poweroff -f
INIT
chmod +x "$root/init"
if [ "$share" = 1 ]; then
  set -- "$program" "$@"
  # The library and its driver are not installed here: both are told where they lie.
  cat >"$root/environment" <<ENVIRONMENT
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run
export RDMAV_DRIVERS=$unpacked/usr/lib/x86_64-linux-gnu/libibverbs/librxe LD_LIBRARY_PATH=$libraries
ENVIRONMENT
fi
printf '%q ' "$@" >"$root/arguments"
(cd "$root" && find . | ./bin/busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/initrd.gz"

qemu="$(command -v qemu-system-x86_64 || true)"
firmware=()
environment=()
machine=()
if [ -z "$qemu" ]; then
  qemu="$guest/qemu/usr/bin/qemu-system-x86_64"
  firmware=(-L "$guest/qemu/usr/share/seabios" -L "$guest/qemu/usr/share/qemu")
  environment=("LD_LIBRARY_PATH=$guest/qemu/usr/lib/x86_64-linux-gnu:$guest/qemu/lib/x86_64-linux-gnu")
fi
if [ "$share" = 1 ]; then
  machine=(-fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"
    -device "virtio-9p-pci,fsdev=host,mount_tag=host")
fi
status=0
env "${environment[@]}" timeout -k 5 "$seconds_max" "$qemu" "${firmware[@]}" \
  -accel tcg,thread=multi -cpu max -M q35 -m "${RDMA_GUEST_MIB:-512}" -smp "${RDMA_GUEST_CPUS:-1}" -nodefaults -display none -serial stdio \
  -no-reboot -kernel "$guest/vmlinux" -initrd "$work/initrd.gz" \
  "${machine[@]}" -append "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off" </dev/null >"$work/console" 2>&1 || status=$?
tr -d '\r' <"$work/console" | grep -v -e '^rdma-guest exit status' -e 'reboot: Power down' -e "couldn't open config directory" || true
result="$(tr -d '\r' <"$work/console" | sed -n 's/^rdma-guest exit status \([0-9]*\)$/\1/p' | tail -n 1)"
if [ -z "$result" ]; then
  echo "rdma-guest: FAILED: the machine did not come to its end within $seconds_max s (QEMU: exit status $status)"
  exit 1
fi
exit "$result"
