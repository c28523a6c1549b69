#!/bin/bash
# Starts a SLURM cluster of two nodes on this machine, for the tests: start_cluster.sh FOLDER. Needs root, and Debian's packages
# slurmctld, slurmd, slurm-client and munge. All files are in FOLDER except munge's socket and two names in /etc/hosts. Commands
# find the cluster with SLURM_CONF=FOLDER/slurm.conf. It does nothing if the cluster already runs; stop_cluster.sh FOLDER stops it.
set -euo pipefail
folder=$1
export SLURM_CONF=$folder/slurm.conf

if [[ -f $SLURM_CONF ]] && scontrol ping 2> /dev/null | grep -q ' UP'; then
  exit 0
fi
mkdir -p "$folder"/{state,spool,logs}

# Both nodes are this host. On a real cluster, DNS resolves their names.
grep -q 'n1 n2' /etc/hosts || echo "127.0.0.1 n1 n2" >> /etc/hosts

if ! munge -n 2> /dev/null | unmunge > /dev/null 2>&1; then
  # munged requires folders that no other user can write to, and refuses to run as root.
  install -d -o munge -g munge -m 755 /run/munge
  install -d -o munge -g munge -m 700 /etc/munge /var/lib/munge /var/log/munge
  [[ -f /etc/munge/munge.key ]] || runuser -u munge -- mungekey --create
  runuser -u munge -- /usr/sbin/munged
fi

cat > "$SLURM_CONF" << EOF
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired, by default two minutes.
AuthInfo=cred_expire=5
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/logs/slurmctld.log
SlurmdPidFile=$folder/slurmd_%n.pid
SlurmdLogFile=$folder/logs/slurmd_%n.log
SlurmdSpoolDir=$folder/spool/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobRequeue=1
ReturnToService=2
KillWait=30
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=5
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17001 CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17002 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=both Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
EOF

slurmctld -f "$SLURM_CONF"
slurmd -N n1 -f "$SLURM_CONF"
slurmd -N n2 -f "$SLURM_CONF"
for _ in {1..60}; do
  if [[ $(sinfo --noheader --Node --format %t) == $'idle\nidle' ]]; then
    exit 0
  fi
  sleep 0.5
done
echo "error: the nodes did not come up; see $folder/logs" >&2
sinfo >&2
exit 1
