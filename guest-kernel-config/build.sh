#!/bin/bash
# Builds the guest kernel from Debian's linux-source-6.12, patches/ and x86_64.config.
#
#   build.sh [--update]      --update: look for a newer source package first
#
# The last line of stdout is a directory that holds `vmlinux` (stripped ELF, what the VMM boots),
# `config`, `source-version` and `syscalls` (a line a system call that a 64-bit or 32-bit program can make:
# x86_64 or i386, name, number). It is named after the hash of all inputs, so a second call finds it at once and needs
# no network.
# An interrupted build goes on where it was.
#
# Everything is kept under $KATA_LIKE_CACHE (by default ~/.cache/kata-like): about 1.2 GB.
set -euo pipefail
export LC_ALL=C

HERE=$(cd "$(dirname "$0")" && pwd)
. "$HERE/lib/say.sh"
. "$HERE/lib/debian.sh"
. "$HERE/lib/configure.sh"

FRAGMENT=$HERE/x86_64.config
PATCHES=("$HERE"/patches/*.patch)
SUITE=trixie
PACKAGE=linux-source-6.12
CACHE=${KATA_LIKE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kata-like}
DOWNLOADS=$CACHE/linux-source
# What a whole build of this fragment took on 2 idle cores; only the progress display reads them.
USUAL_STEPS=1800
USUAL_TIME='10 min'

# Big parts of the source of which an x86 guest compiles nothing. Kconfig reads every directory's
# Kconfig and Makefile, so only the C files are left out.
UNUSED_SOURCES=('*/drivers/gpu/*.[ch]' '*/drivers/net/ethernet/*.[ch]' '*/drivers/net/wireless/*.[ch]'
  '*/drivers/media/*.[ch]' '*/drivers/staging/*.[ch]' '*/sound/*.[ch]' '*/Documentation/*.rst'
  '*/Documentation/devicetree/*' '*/arch/*/boot/dts/*' '*/tools/testing/*')

# require_tools: all that is missing, in one sentence.
require_tools() {
  local missing=() pair
  for pair in gcc:gcc ld:binutils make:make flex:flex bison:bison bc:bc xz:xz-utils perl:perl patch:patch \
    dpkg-deb:dpkg apt-get:apt flock:util-linux sha256sum:coreutils; do
    command -v "${pair%%:*}" > /dev/null || missing+=("${pair#*:}")
  done
  if ! echo '#include <gelf.h>' | gcc -E - > /dev/null 2>&1; then missing+=(libelf-dev); fi
  [ ${#missing[@]} = 0 ] || fail "to build the guest kernel, first run: sudo apt-get install -y ${missing[*]}"
}

# newest_source: the newest source package in the cache, or nothing.
newest_source() {
  find "$DOWNLOADS" -maxdepth 1 -name "${PACKAGE}_*.deb" 2> /dev/null | sort -V | tail -n 1
}

# download_source: puts the newest source package of the release into the cache.
download_source() {
  local partial=$DOWNLOADS/partial
  say "downloading $PACKAGE of Debian $SUITE (150 MB)"
  mkdir -p "$partial"
  private_apt "$DOWNLOADS/apt" "$SUITE"
  (cd "$partial" && in_private_apt "$DOWNLOADS/apt" download -qq "$PACKAGE" >&2) ||
    fail "$PACKAGE could not be downloaded: check the network, then start again"
  mv "$partial/${PACKAGE}"_*.deb "$DOWNLOADS/"
}

# source_version DEB: the version in its file name.
source_version() {
  local name=${1##*/}
  name=${name#"${PACKAGE}_"}
  echo "${name%_*.deb}"
}

# patched VERSION: the name of the source with the patches.
patched() { echo "$1-$(cat "${PATCHES[@]}" | sha256sum | cut -c1-8)"; }

# unpack_source DEB TREE: the source, patched, unless it is there.
unpack_source() {
  local deb=$1 tree=$2 unused=("${UNUSED_SOURCES[@]/#/--exclude=}") change
  [ ! -d "$tree" ] || return 0
  say "unpacking the source (about 10 s)"
  rm -rf "$tree.partial"
  mkdir -p "$tree.partial"
  dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$PACKAGE.tar.xz" | xz -dc -T0 |
    tar -C "$tree.partial" --strip-components=1 "${unused[@]}" -xf -
  for change in "${PATCHES[@]}"; do
    patch -d "$tree.partial" -p1 --forward --fuzz=0 -i "$change" >&2 ||
      fail "$change does not apply: remove it if the source has its change by now, else mend it"
  done
  mv "$tree.partial" "$tree"
}

# inputs VERSION: the hash that names the result.
inputs() {
  { cat "$FRAGMENT" "$HERE/build.sh" "$HERE"/lib/*.sh "${PATCHES[@]}"; echo "$1"; gcc --version; ld --version; } |
    sha256sum | cut -c1-16
}

# compile TREE BUILD: vmlinux in BUILD, the same bytes wherever and whenever.
compile() {
  local tree=$1 build=$2
  # It takes longest, and what else waits for is built beside it.
  nice -n 15 make -C "$tree" O="$build" -j "$(nproc)" KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_VERSION=1 \
    KBUILD_BUILD_USER=kata-like KBUILD_BUILD_HOST=kata-like vmlinux 2>&1 |
    count_steps "$USUAL_STEPS" "$USUAL_TIME" "$build/make.log" ||
    fail "the kernel did not compile; the end of $build/make.log:"$'\n'"$(tail -n 12 "$build/make.log")"
}

# system_calls TREE: those of both kinds of programs that this kernel runs.
system_calls() {
  local tables=$1/arch/x86/entry/syscalls
  awk '$2 == "common" || $2 == "64" { print "x86_64", $3, $1 }' "$tables/syscall_64.tbl"
  awk '$2 == "i386" { print "i386", $3, $1 }' "$tables/syscall_32.tbl"
}

# publish TREE BUILD VERSION RESULT: the finished directory appears under its name at once or not at all.
publish() {
  local tree=$1 build=$2 version=$3 result=$4
  rm -rf "$result.partial"
  mkdir -p "$result.partial"
  strip --strip-all -o "$result.partial/vmlinux" "$build/vmlinux"
  cp "$build/.config" "$result.partial/config"
  echo "$version" > "$result.partial/source-version"
  system_calls "$tree" > "$result.partial/syscalls"
  mv "$result.partial" "$result"
}

# finished: the directory of a result that is there.
finished() {
  local deb result
  deb=$(newest_source)
  [ -n "$deb" ] || return
  result=$CACHE/kernel-$(inputs "$(source_version "$deb")")
  [ -d "$result" ] && echo "$result"
}

main() {
  local update=no deb version result tree build
  case "${1-}" in
    '') ;;
    --update) update=yes ;;
    *) fail "usage: build.sh [--update]" ;;
  esac
  require_tools
  check_reasons "$FRAGMENT"
  mkdir -p "$DOWNLOADS"
  # Whoever needs nothing built does not wait for somebody who does.
  if [ $update = no ] && finished; then return; fi
  exec 9> "$CACHE/kernel.lock"
  flock -n 9 || { say "another build is running, waiting for it"; flock 9; }

  deb=$(newest_source)
  if [ -z "$deb" ] || [ $update = yes ]; then
    download_source
    deb=$(newest_source)
  fi
  version=$(source_version "$deb")
  result=$CACHE/kernel-$(inputs "$version")
  tree=$DOWNLOADS/$(patched "$version")
  build=$CACHE/kernel-build-$(patched "$version")
  if [ ! -d "$result" ]; then
    unpack_source "$deb" "$tree"
    say "configuring $version"
    configure "$tree" "$build" "$FRAGMENT"
    compile "$tree" "$build"
    publish "$tree" "$build" "$version" "$result"
    say "built in $(duration "$SECONDS"): vmlinux $(megabytes "$result/vmlinux")"
  fi
  echo "$result"
}

main "$@"
