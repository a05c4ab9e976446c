#!/usr/bin/env bash
# Installs what building needs and this machine lacks, and compiles `cargo xtask`; says what, or what to do instead.
# `tests`: and what testing needs.
set -euo pipefail

# What a command or file comes from, in Debian.
needed=(
  cc:gcc c++:g++ ld:binutils make:make flex:flex bison:bison bc:bc xz:xz-utils perl:perl patch:patch # guest kernel
  /usr/include/gelf.h:libelf-dev
  /usr/lib/x86_64-linux-gnu/libcap-ng.a:libcap-ng-dev                                     # file server
  /usr/lib/x86_64-linux-gnu/libseccomp.a:libseccomp-dev
  mmdebstrap:mmdebstrap mke2fs:e2fsprogs tar:tar bzip2:bzip2                              # lab
  cpio:cpio                                                                               # tests of the guest image
  /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
)

say() { printf '[setup] %s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

present() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" > /dev/null ;;
  esac
}

[ "$(uname -m)" = x86_64 ] || stop "this builds on x86_64 only, for now"
command -v cargo > /dev/null ||
  stop "no cargo found: install Rust 1.88 or newer with rustup, then start again"
[ "${1-}" != tests ] || command -v go > /dev/null ||
  stop "no go found: install Go 1.26.6 or newer (for the newest containerd in the lab), then start again"

# room: whether the disk has it, before an hour's work ends for want of it. From nothing the caches need most of it.
room() {
  local cache=${KATA_LIKE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kata-like} need=3 place free
  [ -e target/install ] && [ -e "$cache" ] || need=$1
  mkdir -p "$cache"
  for place in . "$cache"; do
    free=$(df --output=avail -BG "$place" | tail -n 1 | tr -dc 0-9)
    [ "$free" -ge "$need" ] ||
      stop "$(cd "$place" && pwd) has $free GB of room, and $need are needed: make room, then start again"
  done
}
room "$([ "${1-}" = tests ] && echo 25 || echo 10)"

# own_commands: compiles `cargo xtask` where that takes a while, so that cargo shows how far it is.
own_commands() {
  [ ! -e target/x86_64-unknown-linux-gnu/debug/xtask ] || return 0
  say "compiling the project's own commands (about a minute)"
  cargo build --package xtask
}

missing=()
for pair in "${needed[@]}"; do
  present "${pair%%:*}" || missing+=("${pair#*:}")
done
[ ${#missing[@]} -gt 0 ] || { own_commands; exit; }
command -v apt-get > /dev/null ||
  stop "missing: ${missing[*]} (as Debian calls them); install them, then start again"
[ "$(id -u)" = 0 ] || stop "run this first: sudo apt-get install -y ${missing[*]}"
say "installing with apt-get: ${missing[*]} (half a minute)"
export DEBIAN_FRONTEND=noninteractive
while sleep 30; do say "still installing"; done &
trap "kill $!" EXIT
apt-get install -y -qq "${missing[@]}" > /dev/null 2>&1 ||
  { apt-get update -qq && apt-get install -y -qq "${missing[@]}" > /dev/null; }
kill $!
trap - EXIT
own_commands
