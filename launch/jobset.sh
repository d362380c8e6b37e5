#!/usr/bin/env bash
# Starts a run on GKE without xpk, as a JobSet (its controller is in the cluster) through kubectl.
#   IMAGE=i TPU=tpu-v5-lite-podslice TOPOLOGY=4x4 CHIPS=4 launch/jobset.sh CONFIG WORKDIR [FLAGS ...]
#   IMAGE=i GPU=nvidia-h100-80gb CHIPS=8 NODES=2 launch/jobset.sh CONFIG WORKDIR [FLAGS ...]
# CHIPS are those of a node; a TPU slice has as many nodes as its topology needs, SLICES=1 of them.
# IMAGE has this folder installed: docker build --build-arg EXTRAS=tpu,stores -t IMAGE .
# WORKDIR is in a bucket, gs://..., that SERVICE_ACCOUNT (default) may write. --dry_run prints the
# JobSet; `launch/jobset.sh --dry_run ... > jobset.yaml` is the way to change more of it.
set -euo pipefail

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
if [ $# -lt 2 ] || [ -z "${IMAGE:-}" ] || [ -z "${TPU:-}${GPU:-}" ] || [[ "$*" == *$'\n'* ]]; then
  sed -n '2,9s/^# \?//p' "$0" | sed '1s/^/Usage of launch\/jobset.sh. /' >&2
  exit 64
fi
# A string of YAML, in which Kubernetes leaves $(NAME) as it is.
string() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; s/\$(/$$(/g')"; }
arguments=
for flag in "--config=$1" "--workdir=$2" "--tries=${TRIES:-3}" "${@:3}"; do
  arguments+="
                    - $(string "$flag")"
done
# Of a JobSet: small letters, digits and dashes.
name=$(basename "$2" | tr '[:upper:]_.' '[:lower:]--' | cut -c1-36)
chips=${CHIPS:-4} annotations=
if [ -n "${TPU:-}" ]; then
  nodes=$((${TOPOLOGY//x/*} / chips)) slices=${SLICES:-1} limit="google.com/tpu: $chips"
  selector="cloud.google.com/gke-tpu-accelerator: $TPU
                cloud.google.com/gke-tpu-topology: $TOPOLOGY" env='env: []' # GKE tells who is who
  annotations="
  annotations: # a slice is one node pool
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
else
  nodes=${NODES:-1} slices=1 limit="nvidia.com/gpu: $chips"
  selector="cloud.google.com/gke-accelerator: $GPU"
  env="env:
                    - {name: JAX_COORDINATOR_ADDRESS, value: $name-slice-0-0.$name}
                    - {name: JAX_COORDINATOR_PORT, value: \"6002\"}
                    - {name: NNODES, value: \"$nodes\"}
                    - name: NODE_RANK
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']"
fi
# All pods start again when one is lost; another exit code than those below is an error, which ends
# it. `cmjax train --tries` ends it where it comes to nothing.
jobset=$(cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name$annotations
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
      - name: error
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $nodes
          completions: $nodes
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: cmjax
                  operator: NotIn
                  values: [69, 75, 129, 134, 135, 137, 139, 143, 255]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              serviceAccountName: ${SERVICE_ACCOUNT:-default}
              nodeSelector:
                $selector
              volumes:
                - name: shared-memory
                  emptyDir: {medium: Memory}
              containers:
                - name: cmjax
                  image: $IMAGE
                  command: [python, -m, cmjax.main]
                  args:$arguments
                  $env
                  volumeMounts:
                    - {name: shared-memory, mountPath: /dev/shm}
                  resources:
                    limits:
                      $limit
YAML
)
if [ -n "$dry_run" ]; then
  printf '%s\n' "$jobset"
else
  printf '%s\n' "$jobset" | kubectl apply -f -
fi
