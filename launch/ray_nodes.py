"""Wait until a Ray cluster has so many nodes, so that a preparation begins with all of its workers.

Usage: python -m launch.ray_nodes ADDRESS NODES [SECONDS], with the cluster's RAY_AUTH_MODE in the environment.
"""

from __future__ import annotations

import socket
import sys
import time

_POLL_SECONDS = 0.5


def await_nodes(address: str, num_nodes: int, seconds: float = 300.0) -> None:
    """Return when `num_nodes` nodes are alive at HOST:PORT. Raises TimeoutError, naming those there are, after `seconds`."""
    import ray

    deadline = time.monotonic() + seconds
    _await_head(address, deadline)
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        while len(alive := [node for node in ray.nodes() if node["Alive"]]) < num_nodes:
            if time.monotonic() > deadline:
                names = ", ".join(node["NodeManagerHostname"] for node in alive) or "none"
                raise TimeoutError(
                    f"{len(alive)} of {num_nodes} Ray nodes joined {address} in {seconds:.0f} s ({names}): the logs of the "
                    "others' `ray start` say why"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        ray.shutdown()


def _await_head(address: str, deadline: float) -> None:
    host, _, port = address.rpartition(":")
    while True:  # ray.init would wait, too, but end in a traceback
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no Ray head answers at {address} ({error}): the log of its `ray start` says why"
                ) from error
            time.sleep(_POLL_SECONDS)


def main() -> None:
    try:
        await_nodes(sys.argv[1], int(sys.argv[2]), *(float(seconds) for seconds in sys.argv[3:4]))
    except TimeoutError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
