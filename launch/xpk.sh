#!/usr/bin/env bash
# Starts a run on a GKE cluster through xpk (pip install xpk), which restarts it when it is lost.
#   CLUSTER=c DEVICE=v5p-128 SLICES=1 launch/xpk.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]
#   CLUSTER=c DEVICE=h100-mega-80gb-8 NODES=2 launch/xpk.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]
# DEVICE is any of xpk's. IMAGE, python:3.12, is the base of the container, on top of which this
# folder is laid, less what .dockerignore names. WORKDIR is in a bucket: gs://..., or mounted
# (XPK_OPTIONS="--storage=NAME"). --dry_run prints the command.
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
workdir=$2 extra=tpu size="--num-slices=${SLICES:-1}"
case $DEVICE in
  *h100* | *h200* | *a100* | *b200* | *l4*) extra=cuda size="--num-nodes=${NODES:-1}" ;;
esac

# xpk puts the command into YAML as it is, and Kubernetes replaces what looks like $(NAME) in it:
# every byte that may mean something to one of them is written as \xNN, for bash and YAML alike.
quoted() {
  local LC_ALL=C text=$1 out='' i c
  if [[ $text =~ ^[A-Za-z0-9_./:=,@+-]+$ ]]; then
    printf ' %s' "$text"
    return
  fi
  for ((i = 0; i < ${#text}; i++)); do
    c=${text:i:1}
    [[ $c =~ ^[A-Za-z0-9_./:=,@+-]$ ]] || printf -v c '\\x%02x' "'$c"
    out+=$c
  done
  printf " \$'%s'" "$out"
}
run="pip install -q -c launch/constraints.txt -e .[$extra,stores] && exec python -m cmjax.main"
for flag in "--config=$1" "--workdir=$2" "--tries=${TRIES:-3}" "${@:3}"; do
  run+=$(quoted "$flag")
done
# Of a workload: small letters, digits and dashes.
name=$(basename "$workdir" | tr '[:upper:]_.' '[:lower:]--' | cut -c1-36)

# xpk restarts on 42 and 127 to 255 by itself. Five minutes to save.
command=(
  xpk workload create "--workload=$name" "--cluster=$CLUSTER" "--device-type=$DEVICE" "$size"
  "--base-docker-image=${IMAGE:-python:3.12}" --script-dir=. --max-restarts=100
  --restart-on-exit-codes=69,75 --termination-grace-period-seconds=300 "--command=$run"
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
