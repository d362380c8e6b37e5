#!/usr/bin/env bash
# Trains on this machine: launch/local.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]
#   PROCESSES=4 launch/local.sh ...           4 processes of one run, a GPU for each
#   PROCESSES=2 CPUS=4 launch/local.sh ...    2 processes with 4 simulated CPU devices each
# A run that is interrupted saves a checkpoint and exits with code 75 (EX_TEMPFAIL, "start me
# again"); this script then starts it again. Ctrl-C or SIGTERM here: save, and stop for good.
# --dry_run prints the commands.
set -uo pipefail

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
processes=${PROCESSES:-1}
if [ $# -lt 2 ] || ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
  echo "Usage: [PROCESSES=1] [CPUS=1] launch/local.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]" >&2
  exit 64
fi
# On a CPU a step takes its memory anew from the system each time: in huge pages that is cheap.
tunables=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
run=(python3 -m cmjax.main "--config=$1" "--workdir=$2" "${@:3}")
[ -x .venv/bin/python ] && run[0]=.venv/bin/python

# In the background, so that a signal reaches this script at once and is handed on.
children=() stop=
trap 'stop=yes; kill -TERM "${children[@]}" 2>/dev/null' INT TERM
while true; do
  children=() code=0 port=${PORT:-$((20000 + RANDOM % 10000))}
  for ((i = 0; i < processes; i++)); do
    command=(env "GLIBC_TUNABLES=$tunables")
    [ -n "${CPUS:-}" ] && command+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$CPUS")
    [ "$processes" -gt 1 ] && [ -z "${CPUS:-}" ] && command+=("CUDA_VISIBLE_DEVICES=$i")
    command+=("${run[@]}")
    [ "$processes" -gt 1 ] && command+=(
      "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i"
    )
    if [ -n "$dry_run" ]; then
      printf '%q ' "${command[@]}" && echo
    else
      "${command[@]}" &
      children+=("$!")
    fi
  done
  [ -n "$dry_run" ] && exit
  # One that came while they were being started.
  [ -n "$stop" ] && kill -TERM "${children[@]}" 2>/dev/null
  for child in "${children[@]}"; do
    # A signal ends `wait` early: the run itself may still be saving.
    while wait "$child"; ended=$?; kill -0 "$child" 2>/dev/null; do :; done
    # Of several codes an error counts most, then an interruption.
    case $code in 0 | 75) [ "$ended" -ne 0 ] && code=$ended ;; esac
  done
  [ -z "$stop" ] && [ "$code" -eq 75 ] || exit "$code"
  echo "Interrupted; starting again in 5 seconds." >&2
  sleep 5
  [ -z "$stop" ] || exit "$code"
done
