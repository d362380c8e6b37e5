#!/usr/bin/env bash
# Submits a run to SLURM, one process for each GPU; a run that was interrupted is queued again.
#   NODES=2 GPUS=8 TIME=24:00:00 launch/slurm.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]
# SLURM_OPTIONS holds what else sbatch is to be told: "--partition=gpu --account=me". The workdir is
# on a file system that all nodes share. --dry_run prints the job instead of submitting it.
set -euo pipefail

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
if [ $# -lt 2 ]; then
  echo "Usage: NODES=2 GPUS=8 launch/slurm.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]" >&2
  exit 64
fi
config=$1 workdir=$2
shift 2
gpus=${GPUS:-8}
flags=
for flag in "$@"; do flags+=" $(printf '%q' "$flag")"; done

# SIGTERM comes to every process three minutes before the end of the time, and at a preemption: the
# run saves and exits with 75. JAX finds the other processes from SLURM's variables.
job=$(cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=$(basename "$workdir")
#SBATCH --nodes=${NODES:-1}
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=${TIME:-24:00:00}
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$workdir/slurm-%j.log
cd $(printf '%q' "$PWD")
srun .venv/bin/python -m cmjax.main --config=$(printf '%q' "$config") \\
  --workdir=$(printf '%q' "$workdir")$flags
code=\$?
if [ "\$code" -eq 75 ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
JOB
)
if [ -n "$dry_run" ]; then
  echo "sbatch ${SLURM_OPTIONS:-} <<'JOB'"
  printf '%s\nJOB\n' "$job"
  exit
fi
mkdir -p "$workdir"
# Unquoted: several options.
# shellcheck disable=SC2086
printf '%s\n' "$job" | sbatch ${SLURM_OPTIONS:-}
