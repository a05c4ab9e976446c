# Sourced. From the commented fragment to a .config in which every line of it was taken.

# strip_reasons FRAGMENT: the fragment as Kconfig wants it.
strip_reasons() { sed -E -e '/^#/d' -e '/^$/d' -e 's/[[:space:]]+#.*$//' "$1"; }

# check_reasons FRAGMENT: every setting has a reason beside it.
check_reasons() {
  local bare
  bare=$(grep -nE '^CONFIG_' "$1" | grep -vE '^[0-9]+:CONFIG_[A-Z0-9_]+=("[^"]*"|[^[:space:]]+)[[:space:]]+# ?.{3,}' || true)
  [ -z "$bare" ] || fail "lines of $1 without a reason beside them:"$'\n'"$bare"
}

# configure SOURCE BUILD FRAGMENT: writes BUILD/.config. It is left alone where it would not
# change, so that a build that goes on compiles nothing twice.
configure() {
  local source=$1 build=$2 fragment=$3 refused
  mkdir -p "$build"
  strip_reasons "$fragment" > "$build/fragment"
  KCONFIG_ALLCONFIG="$build/fragment" make -s -C "$source" O="$build" allnoconfig > "$build/configure.log" 2>&1 ||
    fail "the kernel could not be configured: $(tail -n 3 "$build/configure.log")"
  refused=$(grep -vxFf "$build/.config" "$build/fragment" || true)
  [ -z "$refused" ] || fail "these lines of $fragment were not taken (a dependency is missing, or the kernel no longer knows them):"$'\n'"$refused"
}
