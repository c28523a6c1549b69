#!/bin/bash
# End what start_cluster.sh FOLDER started, but for munged, which other things may use.
set -euo pipefail
folder=$1
for name in slurmd_n1 slurmd_n2 slurmctld; do
  if [[ -f $folder/$name.pid ]]; then
    kill "$(< "$folder/$name.pid")" || true
  fi
done
