#!/usr/bin/env bash
# Trains on this machine: launch/local.sh CONFIG WORKDIR [FLAGS ...]
# A run that is interrupted saves a checkpoint and exits with code 75 (EX_TEMPFAIL, "start me
# again"); this script then starts it again. Ctrl-C or SIGTERM here: save, and stop for good.
set -uo pipefail

if [ $# -lt 2 ]; then
  echo "Usage: launch/local.sh CONFIG WORKDIR [FLAGS ...]" >&2
  exit 64
fi
config=$1 workdir=$2
shift 2
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python

stop=
# In the background, so that a signal reaches this script at once and is handed on.
trap 'stop=yes; kill -TERM "$child" 2>/dev/null' INT TERM
while true; do
  "$python" -m cmjax.main --config="$config" --workdir="$workdir" "$@" &
  child=$!
  wait "$child"
  code=$?
  # A signal ends `wait` early: the run itself may still be saving.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  if [ -n "$stop" ] || [ "$code" -ne 75 ]; then
    exit "$code"
  fi
  echo "Interrupted; starting again in 5 seconds." >&2
  sleep 5
done
