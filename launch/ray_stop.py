"""End this SLURM job's Ray nodes on this machine, and nobody else's: `ray stop` would end every Ray of the user.

SLURM's own signals go to all processes of a step at once, and a raylet whose head is already gone waits a minute for it.

Usage: python -m launch.ray_stop, inside the job.
"""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

_GRACE_SECONDS = 20.0


def stop_nodes(job_id: str) -> None:
    """SIGTERM to each `ray start --block` of the job, which ends what it started; return when they are gone, or too slow."""
    starters = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # ended meanwhile, or not ours to look into
            words = process.cmdline()
            is_ray = "ray.scripts.scripts" in words and "--block" in words and process.name() != "srun"
            if is_ray and process.environ().get("SLURM_JOB_ID") == job_id:
                process.terminate()
                starters.append(process)
    psutil.wait_procs(starters, timeout=_GRACE_SECONDS)


if __name__ == "__main__":
    stop_nodes(os.environ["SLURM_JOB_ID"])
