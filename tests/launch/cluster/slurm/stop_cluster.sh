#!/bin/bash
# Stops the cluster of start_cluster.sh FOLDER. munged keeps running, because other programs may use it.
set -euo pipefail
folder=$1
for name in slurmd_n1 slurmd_n2 slurmctld; do
  if [[ -f $folder/$name.pid ]]; then
    kill "$(< "$folder/$name.pid")" || true
  fi
done
