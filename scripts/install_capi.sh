#!/usr/bin/env bash
# Builds the C library and installs it with its headers, pkg-config and CMake files.
#
#   PREFIX   where it will be used from (default /usr/local)
#   DESTDIR  put in front of PREFIX, for packages (default none)
#   LIBDIR   folder of libraries below PREFIX (default lib)
#   PROFILE  cargo's (default release); the tests take theirs, since most of it is built then
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"

prefix="${PREFIX:-/usr/local}"
libdir="${LIBDIR:-lib}"
profile="${PROFILE:-release}"
case "$prefix" in /*) ;; *) die "PREFIX is $prefix: give an absolute path" ;; esac
case "$libdir" in /* | *..* | "" | */) die "LIBDIR is $libdir: give a folder below PREFIX, such as lib or lib/x86_64-linux-gnu" ;; esac
"$REPO/scripts/ensure_rust.sh"
cd "$REPO"

built() { # built SUFFIX: the library of that kind that cargo has made
  cargo build --locked --quiet --profile "$profile" -p kvcache-capi --lib --message-format json </dev/null |
    "$PYTHON" -c '
import json
import sys

messages = [json.loads(line) for line in sys.stdin]
files = [file for message in messages for file in message.get("filenames", ()) if message["target"]["name"] == "kvcache"]
print(*{file for file in files if file.endswith(sys.argv[1])})
' "$1"
}
shared="$(built libkvcache.so)"
static="$(built libkvcache.a)"
if [ ! -f "$shared" ] || [ ! -f "$static" ]; then die "cargo has not said where it put the libraries: '$shared', '$static'"; fi

# The crate's version is the library's, and its first number the soname's: see kvcache-capi/build.rs.
soname="$(readelf -d "$shared" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')"
soversion="${soname#libkvcache.so.}"
version="$(cargo pkgid -p kvcache-capi | sed 's/.*[#@]//')"
[ "$soversion" = "${version%%.*}" ] || die "the soname is '$soname', and the version $version"

# What Rust's standard library needs of the system: `rustc --print native-static-libs`.
system_libraries=(gcc_s util rt pthread m dl c)

# one ../ for each folder between PREFIX and a file of the library folder
up() { printf '%s' "$1" | sed 's,[^/][^/]*,..,g'; }
fill() { # fill TEMPLATE FILE
  sed -e "s|@VERSION@|$version|g" -e "s|@SOVERSION@|$soversion|g" -e "s|@LIBDIR@|$libdir|g" \
    -e "s|@UP_FROM_PKGCONFIG@|$(up "$libdir/pkgconfig")|g" -e "s|@UP_FROM_CMAKE@|$(up "$libdir/cmake/kvcache")|g" \
    -e "s|@SYSTEM_LIBRARIES@|$(printf -- '-l%s ' "${system_libraries[@]}" | sed 's/ $//')|g" \
    -e "s|@CMAKE_SYSTEM_LIBRARIES@|$(IFS=';'; printf '%s' "${system_libraries[*]}")|g" \
    "kvcache-capi/install/$1" >"$2"
  chmod 644 "$2"
}

root="${DESTDIR:-}$prefix"
lib="$root/$libdir"
install -d "$root/include" "$lib/pkgconfig" "$lib/cmake/kvcache"
install -m 644 include/kvcache.h include/kvcache.hpp "$root/include/"
# A running program may have the old library mapped: `install` and `strip` write files anew.
install -m 755 "$shared" "$lib/libkvcache.so.$version"
strip --strip-unneeded "$lib/libkvcache.so.$version"
install -m 644 "$static" "$lib/libkvcache.a"
# Rust's own standard library brings LLVM's bitcode along, which no linker of another language reads.
strip --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd "$lib/libkvcache.a"
ln -sfn "libkvcache.so.$version" "$lib/$soname"
ln -sfn "$soname" "$lib/libkvcache.so"
fill kvcache.pc.in "$lib/pkgconfig/kvcache.pc"
fill kvcacheConfig.cmake.in "$lib/cmake/kvcache/kvcacheConfig.cmake"
fill kvcacheConfigVersion.cmake.in "$lib/cmake/kvcache/kvcacheConfigVersion.cmake"
say "kvcache $version is installed in $root"
