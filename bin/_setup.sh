# Sourced by bin/demo and bin/test: makes ROOT/.venv with the pinned packages, once. Sets ROOT and PATH; defines say and die.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv

say() { if [[ -t 1 ]]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints the first usable interpreter: 3.11 is the one the pins are tested with; later ones are tried after it.
find_python() {
  local candidate candidates=(python3.11 python3 python3.12 python3.13)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python 3.11 or later (tried: ${candidates[*]}); install it, or name one: PYTHON=/path/to/python3.11 $0"
}

# Shows what pip downloads (name and size) and hides the rest, which stays in the log.
show_downloads() {
  sed -Eun -e 's#^ *(Downloading|Using cached) (.*/)?([^/ ]*)-[^-]*-[^-]*-[^-]*\.whl \(([0-9.]+ [MG]B).*#  \1 \3 (\4)#p' \
    -e 's#^(Installing) collected.*#  \1#p'
}

# Installs what running and testing need; nothing is done when constraints.txt and setup.py are those of the last time.
setup_environment() {
  local stamp log python
  stamp=$(cat "$ROOT/constraints.txt" "$ROOT/setup.py" <(echo "$ROOT") | cksum)
  log=$VENV/install.log
  if [[ -x $VENV/bin/python && $(cat "$VENV/.stamp" 2>/dev/null) == "$stamp" ]]; then
    echo "environment: $VENV (up to date)"
  else
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
      python=$(find_python) || exit 1
      "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make environments; install its venv module (on Debian and Ubuntu: apt install python3-venv)"
      echo "environment: making $VENV with $("$python" --version)"
      "$python" -m venv --clear "$VENV"
    fi
    echo "environment: installing pinned packages (about 5 GB on disk; the log is $log)"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
      -c "$ROOT/constraints.txt" -e "$ROOT[bench,demo,docs,export,onnx,test,train]" 2>&1 | tee "$log" |
      show_downloads || {
      tail -n 20 "$log" >&2
      die "installation failed; see $log, then run this again (it goes on where it stopped)"
    }
    echo "$stamp" >"$VENV/.stamp"
  fi
  export PATH=$VENV/bin:$PATH
}
