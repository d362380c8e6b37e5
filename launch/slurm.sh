#!/usr/bin/env bash
# Submits a run to SLURM, one process for each GPU; it is queued again at the end of its time.
#   NODES=2 GPUS=8 TIME=24:00:00 CPUS=8 MEM=0 launch/slurm.sh [--dry_run] CONFIG WORKDIR [FLAGS ...]
# CPUS for each process: it compiles, and threads of it read data. MEM for each node; 0 is all of it.
# SLURM_OPTIONS holds what else sbatch is to be told: "--partition=gpu --account=me". The workdir is
# on a file system that all nodes share, or in a bucket: then the log is in slurm/NAME, here.
# --dry_run prints the job instead of submitting it.
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
workdir=$2 logs=$2 gpus=${GPUS:-8} cpus=${CPUS:-8}
case $workdir in *://*) logs=$PWD/slurm/$(basename "$workdir") ;; esac
run=$(printf '%q ' .venv/bin/python -m cmjax.main "--config=$1" "--workdir=$2" \
  "--tries=${TRIES:-3}" "${@:3}")

# On the command line, where names need no second quoting; in --output a % is not literal.
# Unquoted: several options.
# shellcheck disable=SC2206
command=(
  sbatch "--job-name=$(basename "$workdir")" "--nodes=${NODES:-1}" "--ntasks-per-node=$gpus"
  "--gpus-per-node=$gpus" "--cpus-per-task=$cpus" "--mem=${MEM:-0}" "--time=${TIME:-24:00:00}"
  --signal=B:USR1@180 --requeue --open-mode=append "--output=${logs//%/%%}/slurm-%j.log"
  ${SLURM_OPTIONS:-}
)
# USR1 comes to this script three minutes before the end of the time: then the run saves, and the
# job is queued again. TERM (scancel, a preemption) is handed on, and SLURM decides what follows.
# What is lost meanwhile starts again in the same job (restart.sh). All tasks may end their saving.
job=$(cat <<JOB
#!/usr/bin/env bash
cd $(printf '%q' "$PWD") || exit 1
ended=''
trap 'ended=yes; kill -TERM "\$child"' USR1
trap 'kill -TERM "\$child"' TERM
bash launch/restart.sh srun --cpus-per-task=$cpus --kill-on-bad-exit=0 --wait=0 \\
  $run &
child=\$!
while wait "\$child"; code=\$?; kill -0 "\$child" 2>/dev/null; do :; done
if [ -n "\$ended" ] && [ "\$code" -eq 75 ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
JOB
)
if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  printf "<<'JOB'\n%s\nJOB\n" "$job"
  exit
fi
mkdir -p "$logs"
printf '%s\n' "$job" | "${command[@]}"
