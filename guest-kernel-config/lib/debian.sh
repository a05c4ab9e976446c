# Sourced. Fetches a package of another Debian release with an apt state of our own, so that
# the machine's own package state stays as it is. Its mirror and its proxy settings are used.

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# configured_mirror NAME: the address ending in /NAME that this machine's own apt uses.
configured_mirror() {
  local sources=(/etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list)
  sed -n -e 's/^URIs:[[:space:]]*//p' -e 's/^deb[[:space:]]\+\(\[[^]]*\][[:space:]]\+\)\?\([^[:space:]]\+\).*/\2/p' \
    "${sources[@]}" 2>/dev/null | tr ' ' '\n' | grep -E "/$1/?$" | head -n 1
}

# private_apt DIR SUITE: makes DIR an apt state for SUITE and its security updates, and reads the lists.
private_apt() {
  local dir=$1 suite=$2 mirror security
  mirror=${KATA_LIKE_DEBIAN_MIRROR:-$(configured_mirror debian || true)}
  [ -n "$mirror" ] || fail "no Debian mirror in this machine's apt configuration: set KATA_LIKE_DEBIAN_MIRROR to one"
  [ -f "$KEYRING" ] || fail "the keys of the Debian archive are missing: sudo apt-get install -y debian-archive-keyring"
  security=$(configured_mirror debian-security || true)
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  : > "$dir/status"
  echo "deb [signed-by=$KEYRING] $mirror $suite main" > "$dir/sources.list"
  if [ -n "$security" ]; then
    echo "deb [signed-by=$KEYRING] $security $suite-security main" >> "$dir/sources.list"
  fi
  cat > "$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
CONF
  if ! in_private_apt "$dir" update -qq >&2; then
    fail "cannot read the package lists of Debian $suite from $mirror: check the network, then start again"
  fi
}

# in_private_apt DIR ARGS…: apt-get on that state.
in_private_apt() {
  local dir=$1
  shift
  APT_CONFIG="$dir/apt.conf" apt-get "$@"
}
