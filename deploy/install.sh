#!/bin/sh
# Installs kata-like on a node, or removes it and all that it has left there, but for settings in /etc/kata-like.
#
#   install.sh install [FROM]   FROM: a folder with usr/, by default the one beside this script, else ../target/install
#   install.sh remove
#
# Places the files, and adds the handler `kata-like` to containerd's configuration, between two lines that mark it; tells
# what is left to do. Where containerd is 2.4 or newer and mkfs.erofs can do what it asks for, there is a second handler,
# `kata-like-erofs`, whose containers are on EROFS layers; its settings are in /etc/kata-like/erofs.toml. Environment:
#   ROOT               where the node's root is (/)
#   CONTAINERD_CONFIG  below it (/etc/containerd/config.toml); empty: leave containerd alone
#   EROFS              no: without that handler; what a container of it may write is its size else (10GiB)
set -eu
umask 022

root=${ROOT:-}
root=${root%/}
config=${CONTAINERD_CONFIG-/etc/containerd/config.toml}
[ -z "$config" ] || config=$root$config
# What was installed, a file a line.
list=$root/usr/share/kata-like/installed
# Of the handler on EROFS layers, as it is installed and as it is read.
sample=$root/usr/share/kata-like/erofs.toml
settings=/etc/kata-like/erofs.toml
begin='# kata-like begin: removed by kata-like'\''s install.sh'
end='# kata-like end'
# All of a configuration that was not there before.
made='# made by kata-like'\''s install.sh
version = 2'

stop() { echo "install.sh: $*" >&2; exit 1; }

source_of() {
  for from in "$@"; do
    [ ! -x "$from/usr/bin/containerd-shim-kata-like-v2" ] || { echo "$from"; return; }
  done
  stop "no usr/bin/containerd-shim-kata-like-v2 in $*: build it with \`cargo xtask build\`, or name the folder it is in"
}

# Each file is replaced in one step: what runs goes on with the old one. It is root's, whoever has built it: root runs it.
place() {
  owner=
  [ "$(id -u)" != 0 ] || owner='-o 0 -g 0'
  (cd "$1" && find usr/bin/kata-like usr/bin/containerd-shim-kata-like-v2 usr/libexec/kata-like usr/share/kata-like \
    -type f ! -name installed) | while read -r file; do
    mkdir -p "$root/$(dirname "$file")"
    mode=644
    [ ! -x "$1/$file" ] || mode=755
    install -m $mode $owner "$1/$file" "$root/$file.new"
    mv -f "$root/$file.new" "$root/$file"
    echo "$file"
  done > "$list.new"
  # What an older version had and this one has not.
  [ ! -e "$list" ] || grep -vxF -f "$list.new" "$list" | while read -r file; do rm -f "$root/$file"; done
  mv "$list.new" "$list"
}

# The table of the CRI's runtimes in a configuration of that version.
runtimes() {
  case $1 in
    2) echo 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes' ;;
    3 | 4) echo "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes" ;;
    *) stop "$config: version $1 is none that this knows (2 to 4): add the handler by hand, see the README" ;;
  esac
}

forget_handler() {
  [ -e "$config" ] || return 0
  grep -qxF "$begin" "$config" || return 0
  grep -qxF "$end" "$config" || stop "$config: the line '$end' is gone: remove what is ours by hand, from '$begin' on"
  # With the empty line before it.
  awk -v begin="$begin" -v end="$end" '
    $0 == begin { skip = 1; held = 0 }
    !skip { if (held) print ""; held = ($0 == ""); if (!held) print }
    $0 == end { skip = 0 }
    END { if (held) print ""; exit skip }' "$config" > "$config.new" || stop "$config: what is ours has no end"
  # Into the same file, which may be a link; the copy stays if that fails.
  cat "$config.new" > "$config"
  rm "$config.new"
  # One that was not there before.
  [ "$(cat "$config")" != "$made" ] || rm "$config"
}

# Before anything is changed: what can't be done is said.
find_table() {
  version=2
  [ ! -e "$config" ] || version=$(sed -n 's/^ *version *= *\([0-9]*\).*/\1/p' "$config" | head -n 1)
  table=$(runtimes "${version:-1}")
}

# Why there can't be a handler on EROFS layers; nothing where there can.
why_not_erofs() {
  [ "${EROFS-}" != no ] || { echo "EROFS=no"; return; }
  case $version in 3 | 4) ;; *) echo "$config is of version ${version:-1}, which 2.x reads as 1.7 does"; return ;; esac
  # As "containerd github.com/containerd/containerd/v2 v2.4.2 COMMIT", in distributions without the v.
  found=$(containerd --version 2> /dev/null | awk '{ sub(/^v/, "", $3); print $3 }')
  case $found in
    2.[0-3] | 2.[0-3].* | 1.* | '') echo "containerd is ${found:-not found}, older than 2.4"; return ;;
  esac
  for tool in mkfs.erofs mkfs.ext4; do
    command -v "$tool" > /dev/null || { echo "there is no $tool (packages erofs-utils and e2fsprogs)"; return; }
  done
  mkfs.erofs --help 2>&1 | grep -q -e --sort= || { echo "mkfs.erofs is older than 1.8.2"; return; }
  if [ -e "$config" ] && tr -d "\"' " < "$config" | grep -q -e '^\[plugins\.io\.containerd\..*\.erofs\]' -e '^\[plugins\..*diff-service\]' \
    -e '\.kata-like-erofs\]'; then
    echo "$config has tables for it already"
  fi
}

# What is added for it: a container of it takes two slots of its machine's, so there are more than usual.
erofs_tables() {
  cat << END

[$table.kata-like-erofs]
runtime_type = "io.containerd.kata-like.v2"
snapshotter = "erofs"

[$table.kata-like-erofs.options]
ConfigPath = "$settings"

[plugins.'io.containerd.service.v1.diff-service']
default = ["erofs", "walking"]

[plugins.'io.containerd.differ.v1.erofs']
mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]

[plugins.'io.containerd.snapshotter.v1.erofs']
default_size = "${EROFS:-10GiB}"
END
}

# Settings that nobody has changed.
forget_settings() {
  if [ -e "$sample" ] && cmp -s "$sample" "$root$settings"; then
    rm "$root$settings"
    rmdir "$root$(dirname "$settings")" 2> /dev/null || true
  fi
}

add_handler() {
  forget_handler
  if [ ! -e "$config" ]; then
    mkdir -p "$(dirname "$config")"
    echo "$made" > "$config"
  fi
  if grep -v '^ *#' "$config" | tr -d "\"' " | grep -qF '.containerd.runtimes.kata-like]'; then
    echo "$config has a handler kata-like already: left as it is"
    return
  fi
  why_not=$(why_not_erofs)
  {
    printf '\n%s\n[%s.kata-like]\nruntime_type = "io.containerd.kata-like.v2"\n' "$begin" "$table"
    [ -n "$why_not" ] || erofs_tables
    echo "$end"
  } >> "$config"
  echo "$config: handler kata-like added; it counts once containerd is restarted (systemctl restart containerd)"
  if [ -n "$why_not" ]; then
    echo "there is no handler kata-like-erofs, on EROFS layers: $why_not"
    return
  fi
  echo "handler kata-like-erofs added, whose containers are on EROFS layers, which containerd makes of images with mkfs.erofs"
  others=$root$(dirname "$settings")/config.toml
  if [ -e "$others" ]; then echo "it reads $settings, not $others: what counts for both is to be in both"; fi
  if [ ! -e "$root$settings" ]; then
    mkdir -p "$root$(dirname "$settings")"
    cp "$sample" "$root$settings"
  fi
}

# Directories of sandboxes' states: what the settings say, of the node and of each handler.
states() {
  echo /run/kata-like
  {
    for file in "$root"/etc/kata-like/*.toml; do echo "$file"; done
    [ -z "$config" ] || sed -n "s,^ *ConfigPath *= *[\"']\([^\"']*\).*,$root\1,p" "$config" 2> /dev/null || true
  } | sort -u | while read -r file; do
    [ ! -e "$file" ] || sed -n "s,^ *state *= *[\"']\([^\"']*\).*,\1,p" "$file"
  done
}

# What is still there of a sandbox. Its state can be anywhere, as ctr and kata-like are told; its programs can't.
sandboxes() {
  states | while read -r state; do ls -d "$root$state"/*/* 2> /dev/null || true; done
  ls -d "$root"/run/kata-like-cli/* 2> /dev/null || true
  # As "lrwxrwxrwx 1 root root 0 Jan 1 00:00 /proc/1/exe -> /sbin/init"; of a file that was replaced, with "(deleted)".
  ls -l /proc/[0-9]*/exe 2> /dev/null | sed -n 's,.* /proc/\([0-9]*\)/exe -> ,\1 ,p' | while read -r pid program; do
    case ${program% (deleted)} in
      "$root"/usr/bin/kata-like | "$root"/usr/bin/containerd-shim-kata-like-v2 | "$root"/usr/libexec/kata-like/*)
        echo "process $pid ($program)"
        ;;
    esac
  done
}

# What sandboxes and a crash have left, now that there is none.
forget_sandboxes() {
  states | while read -r state; do rmdir "$root$state"/* "$root$state" 2> /dev/null || true; done
  rmdir "$root/run/kata-like-cli" 2> /dev/null || true
  # Nothing is mounted there: what is, is not ours.
  rm -rf --one-file-system "$root/run/kata-like-uids" "$root/var/lib/kata-like/run"
  rmdir "$root/var/lib/kata-like" 2> /dev/null || true
}

case ${1-} in
  install)
    here=$(cd "$(dirname "$0")" && pwd)
    if [ -n "${2-}" ]; then from=$(source_of "$2"); else from=$(source_of "$here" "$here/../target/install"); fi
    [ -z "$config" ] || find_table
    mkdir -p "$(dirname "$list")"
    place "$from"
    [ -z "$config" ] || add_handler
    ;;
  remove)
    [ -e "$list" ] || stop "$list is not there: nothing was installed by this script"
    left=$(sandboxes | head -n 1)
    [ -z "$left" ] || stop "there are still sandboxes on this node, $left for one: drain it, then start again"
    forget_sandboxes
    [ -z "$config" ] || forget_handler
    forget_settings
    while read -r file; do rm -f "$root/$file"; done < "$list"
    rm "$list"
    rmdir "$root/usr/share/kata-like" "$root/usr/libexec/kata-like" 2> /dev/null || true
    echo "removed; containerd forgets the handler once it is restarted"
    [ ! -e "$root/etc/kata-like" ] || echo "settings of this node's are left in $root/etc/kata-like"
    ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
