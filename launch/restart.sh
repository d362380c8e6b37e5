#!/usr/bin/env bash
# Runs a command, and again when it was interrupted or lost: launch/restart.sh COMMAND [ARGS ...]
#   TRIES=3    ends after so many losses in a row that came within SOON=60 seconds of the start, or
#              without the other processes of the run. Of those that come later `cmjax train --tries`
#              tells how many made no new checkpoint: the command should have that flag.
#   PAUSE=5    seconds before it is started again; LOST_PAUSE, where a process was lost: 120 where
#              each host starts its own, since the others need that long to notice.
# SIGTERM, SIGINT and SIGHUP to this script go to the command, which is then not started again.
# `launch/restart.sh --again CODE` only says, by its own exit code, whether a CODE is started again.
set -uo pipefail

# 75: interrupted, saved. 69: the others did not come. Above 128: ended by a signal: 134 by JAX, as
# it ends a process whose others are gone; 137 killed, as by a machine out of memory; 255 is ssh's.
again() { [ "$1" -eq 75 ] || [ "$1" -eq 69 ] || { [ "$1" -gt 128 ] && [ "$1" -ne 130 ]; }; }

if [ "${1:-}" = --again ] && [[ ${2:-} =~ ^[0-9]+$ ]]; then
  again "$2"
  exit
fi
if [ $# -eq 0 ]; then
  echo "Usage: [TRIES=3] launch/restart.sh COMMAND [ARGS ...], launch/restart.sh --again CODE" >&2
  exit 64
fi
pause=${PAUSE:-5} lost=0 child='' stop=''
trap 'stop=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' INT TERM HUP
while true; do
  began=$SECONDS
  # In the background, so that a signal reaches this script at once and is handed on.
  "$@" &
  child=$!
  [ -n "$stop" ] && kill -TERM "$child" 2>/dev/null # one that came while it was being started
  # A signal ends `wait` early: the run itself may still be saving.
  while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
  child=''
  [ -z "$stop" ] && again "$code" || exit "$code"
  seconds=$pause what="Interrupted"
  if [ "$code" -ne 75 ]; then
    seconds=${LOST_PAUSE:-$pause} what="Lost (exit code $code)"
    if [ "$code" -eq 69 ] || [ $((SECONDS - began)) -lt "${SOON:-60}" ]; then
      lost=$((lost + 1))
    else
      lost=0
    fi
    if [ "$lost" -ge "${TRIES:-3}" ]; then
      echo "Lost $lost times in a row before it came to anything (exit code $code): not again." >&2
      exit "$code"
    fi
  else
    lost=0
  fi
  echo "$what; starting again in $seconds seconds." >&2
  sleep "$seconds" &
  wait $!
  [ -z "$stop" ] || exit "$code"
done
