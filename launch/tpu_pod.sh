#!/usr/bin/env bash
# A run on a Cloud TPU pod through queued resources (gcloud, with a project and a zone set).
#   launch/tpu_pod.sh [--dry_run] create NAME TYPE VERSION      TYPE v5p-128; VERSION v2-alpha-tpuv5
#   launch/tpu_pod.sh [--dry_run] setup NAME                    copies this folder, installs it
#   launch/tpu_pod.sh [--dry_run] start NAME CONFIG WORKDIR [FLAGS ...]
#   launch/tpu_pod.sh [--dry_run] logs|stop|delete NAME         stop: SIGTERM; the run saves
# WORKDIR is on a file system that all hosts share. GCLOUD_OPTIONS go to `create`: --spot, --zone.
# --dry_run prints the commands.
set -euo pipefail

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on_all() { run gcloud compute tpus tpu-vm ssh "$name" --worker=all "--command=$1"; }

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
usage() {
  sed -n '2,8s/^# \?//p' "$0" >&2
  exit 64
}
[ $# -ge 2 ] || usage
verb=$1 name=$2
shift 2
case $verb in
  create)
    [ $# -eq 2 ] || usage
    # Unquoted: several options.
    # shellcheck disable=SC2086
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" \
      "--accelerator-type=$1" "--runtime-version=$2" ${GCLOUD_OPTIONS:-}
    ;;
  setup)
    run gcloud compute tpus tpu-vm scp --recurse --worker=all . "$name:cmjax"
    on_all "cd cmjax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
    ;;
  start)
    [ $# -ge 2 ] || usage
    # local.sh starts the run again after a maintenance that left the machines alive.
    arguments=$(printf '%q ' "$1" "$2" "${@:3}")
    on_all "cd cmjax && nohup launch/local.sh ${arguments}> ~/cmjax.log 2>&1 < /dev/null &"
    ;;
  logs) on_all "tail -n 20 ~/cmjax.log" ;;
  stop) on_all "pkill -TERM -f launch/local.sh" ;;
  delete) run gcloud compute tpus queued-resources delete "$name" --force --quiet ;;
  *) usage ;;
esac
