#!/usr/bin/env bash
# Makes a virtual environment with cmjax in it: venv.sh DIR STAMP [PYTHON]. Called by the Makefile.
# Without PYTHON, the newest Python >= 3.11 on which everything installs: the same tests take less
# time on a newer jax, and Python 3.11 has only jax 0.10.2.
set -euo pipefail

venv=$1 stamp=$2 wanted=${3:-}

# Every interpreter of one name: all on PATH, then pyenv's, whose shims on PATH may refuse to run.
named() {
  case $1 in
    */*) echo "$1" ;;
    *)
      type -aP "$1" || true
      if command -v pyenv >/dev/null; then
        find "$(pyenv root)/versions" -path "*/bin/$1" 2>/dev/null | sort -r || true
      fi
      ;;
  esac
}

# venv, ssl and ensurepip: a Python built or packaged without one of them cannot install anything.
works() {
  "$1" -c 'import sys, venv, ssl, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

install() {
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary \
    -e '.[test]' && touch "$stamp"
}

# Same interpreter, newer setup.py: what is installed already stays.
if [ -e "$stamp" ] && works "$venv/bin/python" && install; then
  exit 0
fi

for name in ${wanted:-python3.14 python3.13 python3.12 python3.11 python3}; do
  while read -r python; do
    works "$python" || continue
    echo "Making $venv with $("$python" --version) ($python). This takes a few minutes." >&2
    rm -rf "$venv"
    if "$python" -m venv "$venv" && install; then
      exit 0
    fi
    rm -rf "$venv"
    echo "cmjax does not install on $python (see above)." >&2
    break # another build of the same version would fare no better
  done < <(named "$name")
done

if [ -n "$wanted" ]; then
  echo "PYTHON=$wanted does not work. It must be Python >= 3.11 with venv, ssl and ensurepip, and" >&2
  echo "the dependencies must install on it. Without PYTHON, make takes the newest that works." >&2
else
  echo "No Python >= 3.11 (with venv, ssl and ensurepip) on which cmjax installs was found." >&2
  echo "Install one ('apt install python3 python3-venv', 'brew install python', 'pyenv install" >&2
  echo "3.13'), or name one: PYTHON=/path/to/python3.13 make ..." >&2
fi
exit 1
