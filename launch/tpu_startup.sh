#!/usr/bin/env bash
# What the hosts of a TPU pod do at each boot (the start-up script of `tpu_pod.sh run`): they fetch
# this folder from the run's bucket, install it and train.
set -euo pipefail

attribute() {
  curl -sf -H Metadata-Flavor:Google \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
folder=${FOLDER:-/opt/cmjax}
mkdir -p "$folder"
chmod 1777 "$folder" # for the file that asks to stop
cd "$folder"
exec >> run.log 2>&1
rm -f stop
command=$(attribute cmjax-command) bucket=$(attribute cmjax-folder)
worker=$(attribute agent-worker-number)
gcloud storage cp "$bucket/source.tar.gz" - | tar -xz
bash launch/install.sh tpu,stores

# Each host starts its own process, so that all wait until the others have noticed a loss.
# The command is quoted for a shell.
child=
trap '[ -z "$child" ] || kill -TERM "$child"' TERM
eval "LOST_PAUSE=\${LOST_PAUSE:-120} bash launch/restart.sh .venv/bin/python -m cmjax.main $command &"
child=$!
code=0
while kill -0 "$child" 2>/dev/null; do
  [ ! -e stop ] || kill -TERM "$child" 2>/dev/null || true
  sleep 2 || true
done
wait "$child" || code=$?
gcloud storage cp run.log "$bucket/host-$worker.log" || true
# After a preemption there is nothing to tell: the next machines go on.
if [ "$worker" -eq 0 ] && { [ "$code" -ne 75 ] || [ -e stop ]; }; then
  echo "$code" | gcloud storage cp - "$bucket/code"
fi
exit "$code"
