#!/usr/bin/env bash
# Trains on this machine: launch/local.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]
#   PROCESSES=4 launch/local.sh ...           4 processes of one run, a GPU for each
#   PROCESSES=2 CPUS=4 launch/local.sh ...    2 processes with 4 simulated CPU devices each
# A run that is interrupted or lost is started again (restart.sh says when, and how often: TRIES).
# Ctrl-C or SIGTERM here: save, and stop for good. --dry_run prints the commands.
set -uo pipefail

mode=${1:-}
case $mode in --dry_run | --once) shift ;; *) mode= ;; esac # --once: for restart.sh
processes=${PROCESSES:-1}
if [ $# -lt 2 ] || ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
  echo "Usage: [PROCESSES=1] [CPUS=1] launch/local.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]" >&2
  exit 64
fi
here=$(dirname "${BASH_SOURCE[0]}")
[ -n "$mode" ] || exec bash "$here/restart.sh" bash "$here/local.sh" --once "$@"
# On a CPU a step takes its memory anew from the system each time: in huge pages that is cheap.
tunables=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
run=(python3 -m cmjax.main "--config=$1" "--workdir=$2" "--tries=${TRIES:-3}" "${@:3}")
[ -x .venv/bin/python ] && run[0]=.venv/bin/python

# Of several codes an error counts most, then a loss, then an interruption.
weight() { case $1 in 0) echo 0 ;; 75) echo 1 ;; 69) echo 2 ;; *) echo $(($1 > 128 ? 3 : 4)) ;; esac; }

children=() stop='' worst=0 port=${PORT:-$((20000 + RANDOM % 10000))}
trap 'stop=yes; kill -TERM "${children[@]}" 2>/dev/null' INT TERM HUP
for ((i = 0; i < processes; i++)); do
  command=(env "GLIBC_TUNABLES=$tunables")
  [ -n "${CPUS:-}" ] && command+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$CPUS")
  [ "$processes" -gt 1 ] && [ -z "${CPUS:-}" ] && command+=("CUDA_VISIBLE_DEVICES=$i")
  command+=("${run[@]}")
  [ "$processes" -gt 1 ] && command+=(
    "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i"
  )
  if [ "$mode" = --dry_run ]; then
    printf '%q ' "${command[@]}" && echo
  else
    "${command[@]}" &
    children+=("$!")
  fi
done
[ "$mode" = --dry_run ] && exit
[ -n "$stop" ] && kill -TERM "${children[@]}" 2>/dev/null # one that came while they were started
for child in "${children[@]}"; do
  while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
  [ "$(weight "$code")" -gt "$(weight "$worst")" ] && worst=$code
done
exit "$worst"
