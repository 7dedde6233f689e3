#!/usr/bin/env bash
# What slurm.sh submits: slurm_job.sh ROOT MAX_RESTARTS PYTHON_ARGUMENTS...
set -u
logs=$1/logs/$SLURM_JOB_NAME max_restarts=$2
cd "$1" || exit
rm -f "$logs.stop"
# Since 22.05, srun does not take this over from sbatch, and gives each task one CPU.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# A task that ends must not have the others killed, which may still be saving; they end by themselves.
srun --kill-on-bad-exit=0 .venv/bin/python -u "${@:3}"
code=$?
# 0 is finished, 2 would be refused again.
if ((code == 0 || code == 2 || ${SLURM_RESTART_COUNT:-0} >= max_restarts)) || [[ -e $logs.stop ]]; then
  echo "$code" >"$logs.code"
  exit "$code"
fi
scontrol requeue "$SLURM_JOB_ID"
