#!/usr/bin/env bash
# Prints a folder with the programs of a real Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager,
# and kubectl. Installs nothing and needs no root: Debian's packages are unpacked into the cache, and what Debian has
# only as a source is compiled, once. That takes a quarter of an hour on two cores and 3 GB meanwhile; 240 MB stay.
#
# Exit status 3 means that they cannot be had on this machine; the reason is the last line on stderr.
#
# KUBE_BUILD_PROCESSES is how many compilers run at a time (default: as many as there are processors).
#
# Kubernetes is 1.20.2: the last one whose whole source, with all that it vendors, is in the distribution. Debian's
# patches are left out, since they are for Debian's packaging.
set -euo pipefail
. "$(dirname "$0")/dev_paths.sh"
. "$(dirname "$0")/debian_packages.sh"

cannot() { printf 'cannot be had: %s\n' "$*" >&2; exit 3; }

version=1.20.2
go_version=1.19
programs=(etcd kube-apiserver kube-controller-manager kubectl)
# By this recipe, less its comments: it takes too long to be followed again for a better sentence.
folder="$KVCACHE_DEV_CACHE/kube-$version-$(sed -e '/^ *#/d' "$0" | sha256sum | cut -c1-12)"
if [ -e "$folder/.complete" ]; then
  echo "$folder/bin"
  exit
fi
[ "$(uname -s)" = Linux ] || cannot "the packages are for Linux, this is $(uname -s)"
mkdir -p "$KVCACHE_DEV_CACHE"
exec 9>"$KVCACHE_DEV_CACHE/.kube.lock"
flock 9
if [ -e "$folder/.complete" ]; then
  echo "$folder/bin"
  exit
fi

say "making the Kubernetes control plane for tests (once, a quarter of an hour)"
work="$folder/work"
bin="$folder/bin"
tree="$work/gopath/src/k8s.io/kubernetes"
export GOROOT="$work/go/usr/lib/go-$go_version" GOPATH="$work/gopath" GOCACHE="$work/gocache" GOENV=off
# The tree is from before modules were the only way, and everything it needs lies in its vendor folder.
export GO111MODULE=off GOFLAGS=-trimpath GOTOOLCHAIN=local CGO_ENABLED=0

unpack() {
  [ "$(df --output=avail -k "$KVCACHE_DEV_CACHE" | tail -n 1)" -ge $((4 << 20)) ] ||
    cannot "less than 4 GB are free in $KVCACHE_DEV_CACHE"
  rm -rf "$folder"
  mkdir -p "$bin" "$work" "$tree"
  debian_release "$work/debian" bookworm
  debian_unpack "$work/debian" "$work/go" "golang-$go_version-go" "golang-$go_version-src"
  debian_unpack "$work/debian" "$work/packages" etcd-server golang-github-modern-go-reflect2-dev
  cp "$work/packages/usr/bin/etcd" "$bin/"
  debian_source "$work/debian" "$work/source" kubernetes
  local archive
  archive="$(echo "$work"/source/kubernetes_*really"$version".orig.tar.gz)"
  [ -e "$archive" ] || cannot "Debian's source of Kubernetes is no longer $version: $(cd "$work/source" && ls | tr '\n' ' ')"
  tar -xzf "$archive" -C "$tree" --strip-components=1
  rm -rf "$work/source"

  # The vendored reflect2 reaches into the runtime of Go up to 1.17; with a newer one the API server crashes at the first
  # write of a custom resource.
  local reflect="$tree/vendor/github.com/modern-go/reflect2"
  rm "$reflect"/go_{above_17,below_17,above_19,below_19}.go
  cp "$work/packages/usr/share/gocode/src/github.com/modern-go/reflect2"/*.go "$reflect/"
}

# kubectl is a newer one than the server where that can be had: it is what users have.
kubectl() {
  # In shells of their own: `cannot` ends the shell.
  (debian_release "$work/trixie" trixie && debian_unpack "$work/trixie" "$work/kubectl" kubectl) ||
    { say "kubectl of trixie cannot be had, so it is bookworm's"
      debian_unpack "$work/debian" "$work/kubectl" kubernetes-client; }
  cp "$work/kubectl/usr/bin/kubectl" "$bin/"
}

go() { nice -n 10 "$GOROOT/bin/go" "$@"; }

# The one generated file that the source does not carry: the schemas of all types, by which server-side apply merges.
openapi() {
  local packages
  # As the project's own makefile does, for every package with the tag but those of the examples. The staged packages are
  # imported as vendored ones, to which the links in vendor/k8s.io lead.
  packages="$(cd "$tree" && grep -rl --include='*.go' '+k8s:openapi-gen=' cmd pkg plugin staging/src/k8s.io |
    grep -v -E '_test\.go$|/(code-generator|sample-apiserver)/' | xargs -n 1 dirname | sort -u |
    sed -e 's|^staging/src|vendor|' -e 's|^|k8s.io/kubernetes/|' | paste -sd,)"
  (cd "$tree" && go build -p "$processes" -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen &&
    "$work/openapi-gen" --go-header-file hack/boilerplate/boilerplate.generatego.txt --input-dirs "$packages" \
      --output-base "$GOPATH/src" --output-package k8s.io/kubernetes/pkg/generated/openapi \
      --output-file-base zz_generated.openapi --report-filename "$work/violations") >"$work/openapi.log" 2>&1 ||
    die "generating the schemas failed: $(tail -n 3 "$work/openapi.log")"
}

compile() { # compile PROGRAM
  local flags="-s -w" package
  for package in component-base/version client-go/pkg/version; do
    package="k8s.io/kubernetes/vendor/k8s.io/$package"
    flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=20"
  done
  say "compiling $1"
  # Without the clients of the cloud providers, which are a sixth of all packages.
  (cd "$tree" && go build -p "$processes" -tags providerless -ldflags "$flags" -o "$bin/$1" "./cmd/$1") >"$work/$1.log" 2>&1 ||
    die "compiling $1 failed: $(tail -n 3 "$work/$1.log")"
  [ "$("$bin/$1" --version)" = "Kubernetes v$version" ] || die "$1 says that it is $("$bin/$1" --version 2>&1 | head -n 1)"
}

processes="${KUBE_BUILD_PROCESSES:-$(nproc)}"
# A build that was interrupted goes on where it was: Go's own cache lies in the work folder.
step() { # step FUNCTION ARGUMENT...
  local name
  name="$work/.done-$(tr ' ' - <<<"$*")"
  [ -e "$name" ] && return
  "$@"
  touch "$name"
}
step unpack
step kubectl
step openapi
step compile kube-apiserver
step compile kube-controller-manager
for program in "${programs[@]}"; do
  [ -x "$bin/$program" ] || die "$bin/$program is missing"
done
rm -rf "$work"
touch "$folder/.complete"
echo "$bin"
