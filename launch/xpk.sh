#!/usr/bin/env bash
# Starts a run on a GKE cluster through xpk (pip install xpk), which restarts it when interrupted.
#   CLUSTER=c DEVICE=v5p-128 IMAGE=python:3.12 launch/xpk.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]
# DEVICE is any of xpk's, TPU or GPU; SLICES of it, 1 by default; IMAGE is the base of the container,
# on top of which this folder is laid. WORKDIR is a mounted bucket (XPK_OPTIONS="--storage=NAME").
# --dry_run prints the command.
set -euo pipefail

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
if [ $# -lt 2 ] || [ -z "${CLUSTER:-}" ] || [ -z "${DEVICE:-}" ]; then
  echo "Usage: CLUSTER=c DEVICE=v5p-128 launch/xpk.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]" >&2
  exit 64
fi
config=$1 workdir=$2
shift 2
extra=tpu
case $DEVICE in *h100* | *h200* | *a100* | *b200* | *l4*) extra=cuda ;; esac
run="pip install -q -e '.[$extra]' && exec python -m cmjax.main"
for flag in "--config=$config" "--workdir=$workdir" "$@"; do
  run+=" $(printf '%q' "$flag")"
done
# Of a workload: small letters, digits and dashes.
name=$(basename "$workdir" | tr '[:upper:]_.' '[:lower:]--' | cut -c1-36)

# SIGTERM, five minutes to save, exit code 75: xpk starts those again, with the same command.
command=(
  xpk workload create "--workload=$name" "--cluster=$CLUSTER" "--device-type=$DEVICE"
  "--num-slices=${SLICES:-1}" "--base-docker-image=${IMAGE:-python:3.12}" --script-dir=.
  --max-restarts=100 --restart-on-exit-codes=75 --termination-grace-period-seconds=300
  "--command=$run"
)
# Unquoted: several options.
# shellcheck disable=SC2206
command+=(${XPK_OPTIONS:-})
if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
exec "${command[@]}"
