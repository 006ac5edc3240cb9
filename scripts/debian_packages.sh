# Debian packages unpacked into a folder: nothing is installed and root is not needed. Sourced by other scripts, which
# define `cannot` for the case that a package cannot be had.
#
#   debian_release FOLDER RELEASE          makes FOLDER with the lists of a release of Debian (as in "bookworm"), binaries and
#                                          sources, whatever this system runs; without RELEASE, the system's own lists
#   debian_unpack FOLDER INTO PACKAGE...   downloads packages and unpacks them, without what they depend on
#   debian_source FOLDER INTO PACKAGE      downloads the files of a source package
#   debian_missing FOLDER PACKAGE...       prints the packages and what they depend on, less what this system has

# The lists are our own: the system's may be missing or old, and only root may change them.
debian_apt() { # debian_apt FOLDER COMMAND ARGUMENT...: apt-get, or another program of apt
  local folder="$1" command="$2" options
  shift 2
  options=(-q -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=
    -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o Acquire::Languages=none)
  if [ -e "$folder/sources.list" ]; then
    # What this system has installed, from wherever, is no candidate.
    options+=(-o "Dir::Etc::sourcelist=$folder/sources.list" -o "Dir::Etc::sourceparts=$folder/none"
      -o "Dir::State::status=$folder/none/status")
  fi
  "$command" "${options[@]}" "$@"
}

debian_release() {
  local folder="$1" release="${2-}" keys=/usr/share/keyrings/debian-archive-keyring.gpg mirror command
  for command in apt-get apt-cache dpkg; do
    command -v "$command" >/dev/null || cannot "$command is missing: this is made of Debian packages"
  done
  rm -rf "$folder"
  mkdir -p "$folder"/{lists/partial,cache/archives/partial,none}
  if [ -n "$release" ]; then
    [ -e "$keys" ] || cannot "$keys, by which Debian's packages are checked, is missing"
    # From where this system has its own packages.
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/$' || true)"
    [ -n "$mirror" ] || cannot "this system's lists of packages name no archive of Debian: run apt-get update"
    touch "$folder/none/status"
    printf "%s [signed-by=$keys] $mirror $release main\n" deb deb-src >"$folder/sources.list"
  fi
  # Otherwise an archive that does not answer is a warning, and its packages are unknown.
  debian_apt "$folder" apt-get update -o APT::Update::Error-Mode=any >"$folder/log" 2>&1 ||
    cannot "apt-get update${release:+ for $release} failed: $(tail -n 1 "$folder/log")"
}

debian_unpack() {
  local folder="$1" into="$2" deb
  shift 2
  rm -rf "$folder/debs"
  mkdir -p "$folder/debs" "$into"
  (cd "$folder/debs" && debian_apt "$folder" apt-get download "$@" >"$folder/log" 2>&1) ||
    cannot "downloading $* failed: $(tail -n 1 "$folder/log")"
  for deb in "$folder/debs"/*.deb; do dpkg -x "$deb" "$into"; done
  rm -rf "$folder/debs"
}

debian_source() {
  local folder="$1" into="$2" package="$3"
  mkdir -p "$into"
  (cd "$into" && debian_apt "$folder" apt-get source --download-only "$package" >"$folder/log" 2>&1) ||
    cannot "downloading the source of $package failed: $(tail -n 1 "$folder/log")"
}

debian_missing() {
  local folder="$1"
  shift
  debian_apt "$folder" apt-get install -s --no-install-recommends "$@" 2>/dev/null | awk '$1 == "Inst" {print $2}'
}
