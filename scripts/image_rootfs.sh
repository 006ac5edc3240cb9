#!/usr/bin/env bash
# Makes the root file system of a container image without a container engine: image_rootfs.sh PROGRAM FOLDER
#
# In it are the program, the libraries that it is linked to, what it opens where it is (RDMA), certificates of
# authorities, and a user. No shell. The folder is made anew. Libraries are those of this machine: build where the C
# library is as old as the kernels that the image is to run on; Debian 12 is what this project is built and tested on.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

[ $# -eq 2 ] || die "usage: image_rootfs.sh PROGRAM FOLDER"
program="$1" root="$2"
[ -x "$program" ] || die "$program is no program"
case "$root" in / | "" | .) die "$root cannot be replaced" ;; esac

rm -rf "$root"
mkdir -p "$root"/{usr/bin,etc/ssl/certs,tmp}
chmod 1777 "$root/tmp"
cp --preserve=mode "$program" "$root/usr/bin/"

# copy_libraries FILE...: what the files are linked to, under the names that they ask for.
copy_libraries() {
  ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $1 !~ /:$/ { print $1 }' | sort -u |
    while read -r library; do
      mkdir -p "$root$(dirname "$library")"
      cp -L "$library" "$root$library"
    done
}
if ldd "$program" 2>&1 | grep -q 'not found'; then
  die "$program needs libraries that are not here: $(ldd "$program" | grep 'not found' | tr '\n' ' ')"
fi
copy_libraries "$program"

# The server opens libibverbs by name when it starts, and that opens the drivers of devices. Without them it serves TCP.
if [ "$(basename "$program")" = kvcache ]; then
  verbs="$(ldconfig -p | awk '/libibverbs\.so\.1 .*=> / { print $NF; exit }')"
  if [ -n "$verbs" ]; then
    folder="$(dirname "$verbs")/libibverbs"
    mkdir -p "$root$(dirname "$verbs")" "$root/etc/libibverbs.d"
    cp -L "$verbs" "$root$verbs"
    copy_libraries "$verbs"
    if [ -d "$folder" ]; then
      mkdir -p "$root$folder"
      cp -L "$folder"/*.so "$root$folder/"
      copy_libraries "$folder"/*.so
      cp /etc/libibverbs.d/* "$root/etc/libibverbs.d/"
    fi
  else
    say "libibverbs1 is not installed here: the image serves TCP only"
  fi
fi

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'nonroot:x:65532:65532::/:/sbin/nologin' >"$root/etc/passwd"
echo 'nonroot:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
say "$root: $(du -sh "$root" | cut -f1)"
