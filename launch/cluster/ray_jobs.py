"""A Ray cluster that is already there: a preparation as one of its jobs, through the dashboard's Ray Jobs API.

The driver runs on the head node; head and workers must have this package and see the same paths. A job that is cancelled or
loses its cluster is submitted again and goes on with what is done.
"""

from __future__ import annotations

import os
import shlex
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from launch.cluster.record import LaunchRecord

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOB = "job.yaml"
_AGENT_SECONDS = 180.0  # until a young or busy head's agent must be there
_NO_AGENT = "No available agent"  # the dashboard's words once it has waited ten seconds for it


class RayClusterError(ValueError):
    """The cluster does not answer, refuses us, or cannot run jobs."""


def check_address(address: str) -> None:
    """Raise RayClusterError where this is no dashboard's address."""
    if not address.startswith(("http://", "https://")):
        raise RayClusterError(f"--ray-address {address}: Ray Jobs go through the dashboard; give http://HEAD:8265")


def job_file(recipe: str, auth_mode: str, environment: dict[str, str]) -> str:
    """What is submitted, as YAML: the command, and the environment that it runs in.

    The recipe travels as a variable: the head node need not see the submitter's disk.
    """
    entrypoint = (
        'export PYTHONSAFEPATH=1; recipe=$(mktemp --suffix=.yaml) && printf %s "$FNET_T5_RECIPE" > "$recipe" && '
        'fnet-t5 prepare --config "$recipe" --ray-address auto'
    )
    # No variable that the driver sets for its workers may be among these: Ray refuses to merge the two.
    variables = {"RAY_AUTH_MODE": auth_mode, **environment, "FNET_T5_RECIPE": recipe}
    job = {"entrypoint": f"bash -c {shlex.quote(entrypoint)}", "runtime_env": {"env_vars": variables}}
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=120)


def submit(address: str, auth_mode: str, job: Path) -> str:
    """The submission id. Raises RayClusterError where no dashboard answers at `address`, or it refuses.

    A head whose agent is still starting is asked again, under the same id: the dashboard's "try again later" can also
    follow a request that did arrive.
    """
    submission = f"fnet-t5-{uuid.uuid4().hex[:12]}"
    arguments = yaml.safe_load(job.read_text(encoding="utf-8"))
    deadline = time.monotonic() + _AGENT_SECONDS
    with _client(address, auth_mode) as client:
        while True:
            try:
                return str(client.submit_job(submission_id=submission, **arguments))
            except RuntimeError as error:
                if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
            if any(known.submission_id == submission for known in client.list_jobs()):
                return submission
            time.sleep(1)


def state(record: LaunchRecord) -> str:
    """The job's state and Ray's message, on one line."""
    with _client(record.address, record.auth_mode) as client:
        info = client.get_job_info(record.job_id)
        return f"{record.job_id}  {info.status}  {(info.message or '').strip()}".rstrip()


def cancel(record: LaunchRecord) -> None:
    """Stop the job: SIGTERM to its driver, SIGKILL seconds later."""
    with _client(record.address, record.auth_mode) as client:
        client.stop_job(record.job_id)


def logs(record: LaunchRecord) -> str:
    """What the driver has printed so far."""
    with _client(record.address, record.auth_mode) as client:
        return str(client.get_job_logs(record.job_id))


@contextmanager
def _client(address: str, auth_mode: str) -> Iterator[JobSubmissionClient]:
    """A client that says the mode aloud: a token that an earlier Ray left in the home directory must not decide."""
    check_address(address)
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = auth_mode
    try:
        from ray.job_submission import JobSubmissionClient

        yield JobSubmissionClient(address)
    except ImportError as error:
        raise RayClusterError(f"Ray Jobs need more than plain Ray ({error}): pip install 'fnet-t5[cluster]'") from error
    except Exception as error:
        raise RayClusterError(f"{address}: {_first_sentence(error)}{_hint(error, auth_mode)}") from error
    finally:
        if before is None:
            del os.environ["RAY_AUTH_MODE"]
        else:
            os.environ["RAY_AUTH_MODE"] = before


def _first_sentence(error: Exception) -> str:
    """Of what Ray says at length; the remedy is ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].partition('. ')[0] if lines else ''}"


def _hint(error: Exception, auth_mode: str) -> str:
    said = f"{type(error).__name__} {error}".lower()
    if "auth" in said or "token" in said or "401" in said or "403" in said:
        if auth_mode == "token":
            return "; set RAY_AUTH_TOKEN to the cluster's token, or ray.auth_mode: disabled where it has none"
        return "; the cluster asks for a token: give ray.auth_mode: token, and RAY_AUTH_TOKEN in the environment"
    if _NO_AGENT.lower() in said:
        return f" (asked for {_AGENT_SECONDS:.0f} s); dashboard_agent.log on the head node says why its agent does not start"
    if "connect" in said:
        return "; is the head's dashboard (port 8265) running and reachable from here?"
    return ""
