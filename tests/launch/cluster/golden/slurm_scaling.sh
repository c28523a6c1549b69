#!/bin/bash
# The runs of a ladder as a job array, made by `fnet-t5 launch slurm scaling`: task i runs line i + 1 of the list next to this file.
# It can be submitted again with sbatch at any time: finished runs are skipped, others resume from their latest checkpoint.
#SBATCH --job-name=ladder
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --chdir=/home/you
#SBATCH --output=/shared/ladder/logs/slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --array=0-23%6
#SBATCH --signal=USR1@300
set -euo pipefail
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
restarts=${SLURM_RESTART_COUNT:-0}

name=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" /shared/ladder/launch/plan.txt)
run_one=(/opt/fnet-t5/bin/fnet-t5 scaling run /shared/ladder --only "$name")
ended_externally=no
trap 'ended_externally=yes' TERM
echo "Job $SLURM_JOB_ID, task $SLURM_ARRAY_TASK_ID, start $((restarts + 1)): $name"

code=0
srun --nodes=1 --ntasks=1 --cpus-per-task=64 "${run_one[@]}" || code=$?
# 75: the run saved and can be resumed.
if ((code == 75)) && [[ $ended_externally == no ]]; then
  if ((restarts < 20)); then
    echo "Saved; requeued to resume (restart $((restarts + 1)) of at most 20)."
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    exit 0
  fi
  echo "Saved, after 20 restarts (max_restarts): resume with sbatch /shared/ladder/launch/scaling.sbatch"
fi
exit "$code"
