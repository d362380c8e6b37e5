#!/usr/bin/env bash
# Installs cmjax into .venv of this folder, on a machine with any Python: launch/install.sh EXTRAS
#   launch/install.sh tpu,stores
# The versions are those of constraints.txt, alike on every host and at each start of a run.
# `make lock` makes that file anew.
set -euo pipefail
if [ $# -ne 1 ]; then
  echo "Usage: launch/install.sh EXTRAS, of setup.py: tpu, cuda, ..." >&2
  exit 64
fi
# Images of Cloud TPU have Python 3.10; uv, which comes from PyPI, brings another.
python3 -m pip install --quiet uv
[ -x .venv/bin/python ] || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -c launch/constraints.txt -e ".[$1]"
