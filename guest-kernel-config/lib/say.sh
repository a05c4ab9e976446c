# Sourced. How the build talks: everything for people goes to stderr, stdout is for the result.

# say WORDS…: one line.
say() { printf 'kernel: %s\n' "$*" >&2; }

# fail WORDS…: what is wrong and what to do, then the end.
fail() {
  printf 'kernel: %s\n' "$*" >&2
  exit 1
}

# duration SECONDS: "4 min 07 s".
duration() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }

# megabytes FILE: its size, in MB with one decimal.
megabytes() { awk -v bytes="$(stat -c %s "$1")" 'BEGIN { printf "%.1f MB", bytes / 1e6 }'; }

# count_steps EXPECTED USUAL LOG: reads make's output, keeps it in LOG and shows how far the build is.
# On a terminal one line is rewritten; elsewhere (CI) a line is printed every 15 s.
count_steps() {
  local expected=$1 usual=$2 log=$3 interval=15 before='' after='\n' steps=0 shown=$SECONDS begun=$SECONDS line
  if [ -t 2 ]; then interval=1 before='\r\033[K' after=''; fi
  show_steps() {
    printf "${before}kernel: compiling, %d of about %d steps, %s (usually %s on 2 idle cores)${after}" \
      "$steps" "$((steps > expected ? steps : expected))" "$(duration $((SECONDS - begun)))" "$usual" >&2
    shown=$SECONDS
  }
  while IFS= read -r line; do
    printf '%s\n' "$line" >&3
    [[ $line =~ ^\ \ [A-Z][A-Z0-9_]+\  ]] || continue
    steps=$((steps + 1))
    if ((SECONDS - shown >= interval)); then show_steps; fi
  done 3> "$log"
  show_steps
  if [ -t 2 ]; then echo >&2; fi
}
