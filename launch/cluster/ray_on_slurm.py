"""Ray nodes inside a SLURM job: wait until they have joined before a data preparation starts, and stop them when it ends.

`ray stop` would stop every Ray of the user. SLURM's own signals go to all processes of a step at the same time, and a raylet
whose head has already stopped waits a minute for it; so each node's `ray start` is stopped separately.

Usage, inside the job:
    python -m launch.cluster.ray_on_slurm wait ADDRESS NODES [SECONDS]     with the cluster's RAY_AUTH_MODE in the environment
    python -m launch.cluster.ray_on_slurm stop                             stops the job's Ray processes on this machine
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress

import psutil

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 20.0


def await_nodes(address: str, num_nodes: int, seconds: float = 300.0) -> None:
    """Return when `num_nodes` nodes are alive at HOST:PORT. Raises TimeoutError, naming the alive nodes, after `seconds`."""
    import ray

    deadline = time.monotonic() + seconds
    _await_head(address, deadline)
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        while len(alive := [node for node in ray.nodes() if node["Alive"]]) < num_nodes:
            if time.monotonic() > deadline:
                names = ", ".join(node["NodeManagerHostname"] for node in alive) or "none"
                raise TimeoutError(
                    f"{len(alive)} of {num_nodes} Ray nodes joined {address} in {seconds:.0f} s ({names}): see the logs of "
                    "`ray start` on the other nodes"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        ray.shutdown()


def _await_head(address: str, deadline: float) -> None:
    host, _, port = address.rpartition(":")
    while True:  # ray.init would also wait, but would end with a traceback
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no Ray head answers at {address} ({error}): see the log of its `ray start`") from error
            time.sleep(_POLL_SECONDS)


def stop_nodes(job_id: str) -> None:
    """Send SIGTERM to each `ray start --block` of the job, which stops its processes; return when all ended, or after 20 s."""
    starters = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended meanwhile, or belongs to another user
            words = process.cmdline()
            is_ray = "ray.scripts.scripts" in words and "--block" in words and process.name() != "srun"
            if is_ray and process.environ().get("SLURM_JOB_ID") == job_id:
                process.terminate()
                starters.append(process)
    psutil.wait_procs(starters, timeout=_GRACE_SECONDS)


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "stop":
        stop_nodes(os.environ["SLURM_JOB_ID"])
        return
    try:
        await_nodes(arguments[0], int(arguments[1]), *(float(seconds) for seconds in arguments[2:3]))
    except TimeoutError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
