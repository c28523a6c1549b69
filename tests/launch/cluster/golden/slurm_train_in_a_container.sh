#!/bin/bash
# One training run under SLURM, made by `fnet-t5 launch slurm train`. It can be submitted again with sbatch at any time: the run
# resumes from the latest complete checkpoint of its folder.
#SBATCH --job-name=base
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gres=gpu:h100:8
#SBATCH --mem=921600M
#SBATCH --partition=gpu
#SBATCH --account=nlp
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --comment="of FNet"
#SBATCH --chdir=/home/you
#SBATCH --output=/shared/runs/base/logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300
set -euo pipefail
# The shell code of modules and conda does not work under -u.
trap 'echo "error: setup: $BASH_COMMAND ended with exit code $?"' ERR
set +u
module load enroot
set -u
trap - ERR
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
restarts=${SLURM_RESTART_COUNT:-0}
export OMP_NUM_THREADS=8

run=/shared/runs/base
logs=$run/logs/job_${SLURM_JOB_ID}_$restarts
train=(fnet-t5 train /shared/runs/base/launch/recipe.yaml --output /shared/runs/base data.path=/shared/data/pile 'tracking.experiment=it'"'"'s a test')
python=python3
# Since SLURM 22.05 srun does not inherit the CPUs from sbatch. The ranks of one node may end before those of another have saved:
# a task that ends must not end the others immediately.
# shellcheck disable=SC2054 # the commas belong to Pyxis's options
step=(srun --cpus-per-task=64 --kill-on-bad-exit=0 --wait=420 --container-image=/images/fnet-t5.sqsh --container-mounts=/shared:/shared,/scratch/data:/data:ro)

# The rendezvous is on the first node of the allocation, on a port below the kernel's range of ephemeral ports.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 12000))
echo "Job $SLURM_JOB_ID, start $((restarts + 1)): $SLURM_JOB_NUM_NODES nodes x 8 ranks meet at $head:$port; logs in $logs"

# scancel, a manual requeue or a preemption end the job externally: SLURM then decides whether it is requeued.
ended_externally=no
trap 'ended_externally=yes' TERM
mkdir -p "$logs"
echo running > "$run/STATUS"

# With these two options torchrun forwards SIGUSR1 and gives the ranks time to save (PyTorch 2.13 has them).
if ! torchrun_help=$("${step[@]}" --nodes=1 --ntasks=1 "$python" -m torch.distributed.run --help); then
  echo failed > "$run/STATUS"
  echo "error: $python does not start torchrun on $head: give the nodes' Python with this package as \`python\` in the cluster file"
  exit 1
fi
if [[ $torchrun_help == *--signals-to-handle* && $torchrun_help == *--shutdown-timeout* ]]; then
  # PET_NODE_RANK is torchrun's --node-rank: each task has its own. STATUS decides below, not the exit code: torchrun's is 1
  # after a signal, even if all ranks saved.
  # shellcheck disable=SC2016
  "${step[@]}" bash -c 'PET_NODE_RANK=$SLURM_NODEID exec "$@"' torchrun "$python" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 --master-addr "$head" --master-port "$port" \
    --rdzv-id "$SLURM_JOB_ID" --signals-to-handle SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout 300 \
    --log-dir "$logs" --redirects 3 --tee 0:3 --no-python "${train[@]}" || echo "torchrun ended with exit code $?"
else
  echo "This PyTorch's torchrun would exit on SIGUSR1 before the ranks have saved: srun starts the ranks itself."
  export MASTER_ADDR=$head MASTER_PORT=$port LOCAL_WORLD_SIZE=8 WORLD_SIZE=32
  # shellcheck disable=SC2016
  "${step[@]}" --ntasks=32 --ntasks-per-node=8 --cpus-per-task=8 \
    --error="$logs/rank_%t.log" bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' rank "${train[@]}" ||
    echo "srun ended with exit code $?"
fi

status=$(cat "$run/STATUS")
case $status in
finished)
  echo "Finished."
  exit 0
  ;;
preempted)
  if [[ $ended_externally == yes ]]; then
    echo "Saved; ended externally."
  elif ((restarts < 20)); then
    echo "Saved; requeued to resume (restart $((restarts + 1)) of at most 20)."
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "Saved, after 20 restarts (max_restarts): resume with sbatch /shared/runs/base/launch/train.sbatch"
    exit 75
  fi
  ;;
*)
  # Ranks that were killed could not write their status.
  echo failed > "$run/STATUS"
  if [[ $ended_externally == yes ]]; then
    echo "Ended externally before it could save: the latest checkpoint is kept."
    exit 75
  fi
  # Ranks that only lost their peers repeat the first error; the failing rank's own message has more detail.
  errors=$(grep -rhE '^error: ' "$logs" || true)
  own=$(grep -vE 'ended with rank|ends while' <<< "$errors" || true)
  echo "The run failed. Its ranks' errors (everything they wrote is in $logs):"
  tail -n 10 <<< "${own:-${errors:-none was written: a rank was killed, most often because memory ran out}}"
  exit 1
  ;;
esac
