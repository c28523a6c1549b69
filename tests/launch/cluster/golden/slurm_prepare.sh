#!/bin/bash
# One data preparation under SLURM, made by `fnet-t5 launch slurm prepare`: a Ray cluster inside the allocation, and the command on
# its first node. It can be submitted again with sbatch at any time: completed work is kept.
#SBATCH --job-name=pile
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --partition=cpu
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --chdir=/home/you
#SBATCH --output=/shared/data/pile.launch/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
set -euo pipefail
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
restarts=${SLURM_RESTART_COUNT:-0}

python=/opt/fnet-t5/bin/python
prepare=(/opt/fnet-t5/bin/fnet-t5 prepare --config /shared/data/pile.launch/recipe.yaml)
# The command shares the first node with Ray's head (--overlap). Since SLURM 22.05 srun does not inherit the CPUs from sbatch.
step=(srun --overlap --nodes=1 --ntasks=1 --cpus-per-task=32)

# Anyone who can connect to Ray can run commands as this user, so every part requires a token that only this job knows. The mode is
# set explicitly; otherwise a token that an earlier Ray left in the home directory would decide it.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# The work is complete when Ray is stopped, so Ray need not wait for it.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Debian's /etc/hosts maps a machine's name to 127.0.1.1, which other nodes cannot reach; this script runs on the first node.
addresses=$( (getent ahostsv4 "${nodes[0]}" || true; hostname -I || true) | tr ' ' '\n' | grep -E '^[0-9]+(\.[0-9]+){3}$' || true)
head=$(grep -v '^127\.' <<< "$addresses" | head -n 1 || true)
head=${head:-127.0.0.1}
# A separate folder: /tmp/ray may belong to another user or to an older Ray.
export RAY_TMPDIR=/tmp/fnet-t5-$SLURM_JOB_ID
port=$((20000 + 4 * (SLURM_JOB_ID % 3000)))
echo "Job $SLURM_JOB_ID, start $((restarts + 1)): Ray on $SLURM_JOB_NUM_NODES nodes x 32 CPUs, head ${nodes[0]} ($head:$port)"

ray_steps=()
start_ray() { # NODE OPTIONS…
  "${step[@]}" --job-name=ray --nodelist="$1" "$python" -m ray.scripts.scripts start --block --disable-usage-stats \
    --num-cpus=32 --num-gpus=0 "${@:2}" > "/shared/data/pile.launch/ray_${SLURM_JOB_ID}_$1.log" 2>&1 &
  ray_steps+=($!)
}
await_nodes() { # NUMBER
  "${step[@]}" --nodelist="${nodes[0]}" "$python" -m launch.cluster.ray_on_slurm wait "$head:$port" "$1" &
  local waiting=$! ray
  while kill -0 $waiting 2> /dev/null; do
    for ray in "${ray_steps[@]}"; do
      kill -0 "$ray" 2> /dev/null && continue
      kill $waiting 2> /dev/null || true
      echo "error: Ray did not stay up on every node. The last lines of its logs:"
      tail -n 2 "/shared/data/pile.launch/ray_${SLURM_JOB_ID}_"*.log
      exit 1
    done
    sleep 1
  done
  wait $waiting
}
stop_ray() {
  trap '' TERM USR1
  local node
  # The head last: a node that cannot sign off from the head waits for a long time.
  for node in "${nodes[@]:1}" "${nodes[0]}"; do
    "${step[@]}" --nodelist="$node" "$python" -m launch.cluster.ray_on_slurm stop || true
  done
  wait "${ray_steps[@]}" || true
  ray_steps=()
}
# With scancel, because a signal to srun itself would kill the step immediately. For steps that end quickly scancel prints an error,
# which is wrong.
# shellcheck disable=SC2329 # called by the traps
end_prepare() {
  squeue --steps --noheader --jobs "$SLURM_JOB_ID" --format "%i %j" | awk '$2 == "prepare" {print $1}' |
    xargs --no-run-if-empty scancel --signal=TERM 2> /dev/null || true
}
time_is_up=no
# A signal only ends the command: committed work is kept, and a later start resumes from it.
trap '[[ -z ${ray_steps[*]:-} ]] || stop_ray' EXIT
trap 'time_is_up=yes; end_prepare' USR1
trap 'end_prepare' TERM

# Ray's client server, which plain Ray does not have, must not use the port of another job's client server on this node.
client_port=()
if "${step[@]}" --nodelist="${nodes[0]}" "$python" -c "import grpc" > /dev/null 2>&1; then
  client_port=(--ray-client-server-port=$((port + 1)))
fi
start_ray "${nodes[0]}" --head --node-ip-address="$head" --port="$port" "${client_port[@]}" --include-dashboard=false
await_nodes 1
for node in "${nodes[@]:1}"; do start_ray "$node" --address="$head:$port"; done
await_nodes "$SLURM_JOB_NUM_NODES"

code=0
if [[ $time_is_up == no ]]; then
  "${step[@]}" --job-name=prepare --nodelist="${nodes[0]}" "${prepare[@]}" --ray-address "$head:$port" &
  while kill -0 $! 2> /dev/null; do # a signal ends `wait` before the command has ended
    wait $! && code=0 || code=$?
  done
fi
stop_ray
if ((code == 0)); then # otherwise Ray's logs stay in it, on each node
  srun --overlap --ntasks-per-node=1 rm -rf "$RAY_TMPDIR" || true
fi
if [[ $time_is_up == yes && ($code != 0 || ! -e /shared/data/pile/manifest.json) ]]; then
  if ((restarts < 20)); then
    echo "Time is up; requeued to resume (restart $((restarts + 1)) of at most 20)."
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  echo "Time is up after 20 restarts (max_restarts): resume with sbatch /shared/data/pile.launch/prepare.sbatch"
  exit 75
fi
exit "$code"
