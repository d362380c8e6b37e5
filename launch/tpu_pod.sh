#!/usr/bin/env bash
# A run on a Cloud TPU pod through queued resources (gcloud, with a project and a zone set).
#   launch/tpu_pod.sh [--dry_run] run NAME TYPE VERSION CONFIG gs://BUCKET/RUN [FLAGS ...]
#       Makes the machines, on which the run starts by itself; makes them again when they were
#       preempted; deletes them at the end. Stopped and called again, it goes on watching.
#   launch/tpu_pod.sh [--dry_run] create NAME TYPE VERSION      TYPE v5p-128; VERSION v2-alpha-tpuv5
#   launch/tpu_pod.sh [--dry_run] setup NAME                    copies this folder, installs it
#   launch/tpu_pod.sh [--dry_run] start NAME CONFIG WORKDIR [FLAGS ...]
#   launch/tpu_pod.sh [--dry_run] logs|stop|delete NAME         stop: the run saves
# The second way is for machines that are there; who preempts them ends it. WORKDIR is gs://... or
# on a file system that all hosts share. GCLOUD_OPTIONS go to what makes machines: "--spot".
# WAIT_MINUTES=1440 is how long it waits for them. --dry_run prints the commands.
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
queued() { run gcloud compute tpus queued-resources "$@"; }
state() { queued describe "$name" "--format=value(state.state)" 2>/dev/null || true; }
# What git knows of, as it is here: no .venv, no runs, no data.
pack() { run bash -c 'git ls-files -z | tar --null --files-from=- -czf "$1"' pack "$scratch/source.tar.gz"; }
ready() { # waits until the machines are there
  local began=$SECONDS now
  [ -z "$dry_run" ] || return 0
  while now=$(state) && [ "$now" != ACTIVE ]; do
    if [ "$now" = FAILED ] || [ $((SECONDS - began)) -gt $((${WAIT_MINUTES:-1440} * 60)) ]; then
      echo "$name is ${now:-not there} after $((SECONDS - began)) seconds. It stays in the queue:" \
        "wait with the same command, or delete it." >&2
      exit 69
    fi
    [ "$now" = SUSPENDED ] && return # preempted while it was made
    sleep "${POLL:-60}"
  done
}
make() { # machines; what more is said of them is in "$@"
  # Unquoted: several options.
  # shellcheck disable=SC2086
  queued create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version" \
    "$@" ${GCLOUD_OPTIONS:-}
}

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
usage() {
  sed -n '2,13s/^# \?//p' "$0" >&2
  exit 64
}
[ $# -ge 2 ] || usage
verb=$1 name=$2
shift 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
case $verb in
  run)
    [ $# -ge 4 ] && [[ $4 == gs://* ]] || usage
    type=$1 version=$2 launch=$4/launch
    printf '%q ' "--config=$3" "--workdir=$4" "--tries=${TRIES:-3}" "${@:5}" > "$scratch/command"
    printf '%s' "$launch" > "$scratch/folder"
    if [ -n "$dry_run" ] || [ -z "$(state)" ]; then
      pack
      run gcloud storage cp "$scratch/source.tar.gz" "$launch/source.tar.gz"
      run gcloud storage rm "$launch/code" 2>/dev/null || true
    fi
    while true; do
      [ -z "$dry_run" ] && [ -n "$(state)" ] || make "--metadata-from-file=startup-script=$(dirname \
        "$0")/tpu_startup.sh,cmjax-command=$scratch/command,cmjax-folder=$scratch/folder"
      ready
      [ -z "$dry_run" ] || exit 0
      while now=$(state) && [ "$now" != SUSPENDED ] && [ "$now" != FAILED ]; do
        if code=$(gcloud storage cat "$launch/code" 2>/dev/null); then
          echo "The run ended with exit code $code; its log is $launch/host-0.log." >&2
          queued delete "$name" --force --quiet
          exit "$code"
        fi
        sleep "${POLL:-60}"
      done
      echo "$name is $now: making it again." >&2
      queued delete "$name" --force --quiet
    done
    ;;
  create)
    [ $# -eq 2 ] || usage
    type=$1 version=$2
    make
    ready
    ;;
  setup)
    pack
    run gcloud compute tpus tpu-vm scp --worker=all "$scratch/source.tar.gz" "$name:cmjax.tar.gz"
    on_all "mkdir -p cmjax && tar -xzf cmjax.tar.gz -C cmjax && cd cmjax && bash launch/install.sh tpu,stores"
    ;;
  start)
    [ $# -ge 2 ] || usage
    arguments=$(printf '%q ' "--config=$1" "--workdir=$2" "--tries=${TRIES:-3}" "${@:3}")
    # ssh returns when nobody holds its input and outputs any more.
    on_all "cd cmjax || exit; LOST_PAUSE=120 setsid nohup bash launch/restart.sh .venv/bin/python -m cmjax.main ${arguments}> run.log 2>&1 < /dev/null & echo \$! > run.pid"
    ;;
  logs) on_all "tail -n 20 cmjax/run.log /opt/cmjax/run.log 2>/dev/null" ;;
  # The start-up script looks for the file.
  stop) on_all "if [ -d /opt/cmjax ]; then touch /opt/cmjax/stop; else kill -TERM \"\$(cat cmjax/run.pid)\"; fi" ;;
  delete) queued delete "$name" --force --quiet ;;
  *) usage ;;
esac
