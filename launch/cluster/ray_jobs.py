"""A Ray cluster that is already running: a data preparation as a job of the dashboard's Ray Jobs API.

The driver runs on the head node; head and workers must have this package and see the same paths. A job that was cancelled or
lost its cluster can be submitted again; it resumes from the completed work.
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
from pydantic import BaseModel, ConfigDict, ValidationError

from launch.cluster.platform import ClusterJob, Platform, PrepareJob, RenderedScript, Submission
from launch.cluster.record import LaunchRecord
from launch.cluster.spec.ray_section import RaySection

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOB = "job.yaml"
_POLL_SECONDS = 1.0
_AGENT_SECONDS = 180.0  # a young or busy head may need this long to start its agent
_NO_AGENT = "No available agent"  # the dashboard's message after it has waited ten seconds for the agent


class RayClusterError(ValueError):
    """The cluster does not answer, refuses the request, or cannot run jobs."""


class _ClusterAccess(BaseModel):
    """What Ray's client needs to find a job again, besides its id."""

    model_config = ConfigDict(extra="ignore")

    address: str
    auth_mode: str


class RayPlatform(Platform):
    """Jobs of a running Ray cluster; they prepare data."""

    section = RaySection

    def render(self, job: ClusterJob) -> tuple[RenderedScript, ...]:
        if not isinstance(job, PrepareJob):
            raise ValueError(f"{job.kind} jobs do not run on a Ray cluster: use SLURM or Kubernetes")
        section = job.cluster.section(RaySection)
        text = job_file(job.recipe, section.auth_mode, job.cluster.environment)
        return (RenderedScript(name=JOB, text=text, size=f"{job.workers} workers on {section.address}"),)

    def submit(self, job: ClusterJob, scripts: tuple[RenderedScript, ...]) -> Submission:
        section = job.cluster.section(RaySection)
        assert section.address is not None
        job_id = submit(section.address, section.auth_mode, job.launch_folder / scripts[0].name)
        details = {"address": section.address, "auth_mode": section.auth_mode}
        return Submission(job_id=job_id, title=f"job {job_id}", details=details)

    def state(self, record: LaunchRecord) -> str:
        """The job's state and Ray's message, on one line."""
        with _client_of(record) as client:
            info = client.get_job_info(record.job_id)
            return f"{record.job_id}  {info.status}  {(info.message or '').strip()}".rstrip()

    def cancel(self, record: LaunchRecord) -> None:
        """Stop the job: Ray sends SIGTERM to its driver, and SIGKILL seconds later."""
        with _client_of(record) as client:
            client.stop_job(record.job_id)

    def logs(self, record: LaunchRecord, *, lines: int, follow: bool) -> int:
        """The driver's output; with `follow` until the job ends."""
        shown = self._output(record)
        print("\n".join(shown.splitlines()[-lines:]))
        while follow:
            time.sleep(_POLL_SECONDS)
            output = self._output(record)
            print(output.removeprefix(shown), end="", flush=True)
            shown = output
            if not any(word in self.state(record) for word in ("RUNNING", "PENDING")):
                break
        return 0

    def _output(self, record: LaunchRecord) -> str:
        with _client_of(record) as client:
            return str(client.get_job_logs(record.job_id))


PLATFORM = RayPlatform()


def check_address(address: str) -> None:
    """Raise RayClusterError if this is not the address of a dashboard."""
    if not address.startswith(("http://", "https://")):
        raise RayClusterError(f"--ray-address {address}: Ray Jobs go through the dashboard; give http://HEAD:8265")


def job_file(recipe: str, auth_mode: str, environment: dict[str, str]) -> str:
    """The submitted job as YAML: the command and its environment.

    The recipe is passed as a variable, because the head node may not see the disk of the submitting machine.
    """
    entrypoint = (
        'export PYTHONSAFEPATH=1; recipe=$(mktemp --suffix=.yaml) && printf %s "$FNET_T5_RECIPE" > "$recipe" && '
        'fnet-t5 prepare --config "$recipe" --ray-address auto'
    )
    # Ray refuses a job that sets a variable which the driver sets for its workers too.
    variables = {"RAY_AUTH_MODE": auth_mode, **environment, "FNET_T5_RECIPE": recipe}
    job = {"entrypoint": f"bash -c {shlex.quote(entrypoint)}", "runtime_env": {"env_vars": variables}}
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=120)


def submit(address: str, auth_mode: str, job: Path) -> str:
    """The submission id. Raises RayClusterError if no dashboard answers at `address`, or if it refuses the job.

    While the head's agent is starting, the request is repeated with the same id: the dashboard's "try again later" can also
    be the answer to a request that it has accepted.
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


@contextmanager
def _client_of(record: LaunchRecord) -> Iterator[JobSubmissionClient]:
    try:
        own = _ClusterAccess.model_validate(record.details)
    except ValidationError as error:
        raise ValueError(f"the record of {record.folder} lacks the cluster's address or auth_mode: launch again") from error
    with _client(own.address, own.auth_mode) as client:
        yield client


@contextmanager
def _client(address: str, auth_mode: str) -> Iterator[JobSubmissionClient]:
    """A client that sets the mode explicitly; otherwise a token that an earlier Ray left in the home directory decides it."""
    check_address(address)
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = auth_mode
    try:
        from ray.job_submission import JobSubmissionClient

        yield JobSubmissionClient(address)
    except ImportError as error:
        raise RayClusterError(f"Ray Jobs need more than plain Ray ({error}): pip install 'ray[default]'") from error
    except Exception as error:
        raise RayClusterError(f"{address}: {_first_sentence(error)}{_hint(error, auth_mode)}") from error
    finally:
        if before is None:
            del os.environ["RAY_AUTH_MODE"]
        else:
            os.environ["RAY_AUTH_MODE"] = before


def _first_sentence(error: Exception) -> str:
    """The start of Ray's message, which is long; `_hint` adds the remedy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].partition('. ')[0] if lines else ''}"


def _hint(error: Exception, auth_mode: str) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if "auth" in text or "token" in text or "401" in text or "403" in text:
        if auth_mode == "token":
            return "; set RAY_AUTH_TOKEN to the cluster's token, or ray.auth_mode: disabled if it has none"
        return "; the cluster requires a token: give ray.auth_mode: token, and RAY_AUTH_TOKEN in the environment"
    if _NO_AGENT.lower() in text:
        return f" (tried for {_AGENT_SECONDS:.0f} s); see dashboard_agent.log on the head node for why its agent does not start"
    if "connect" in text:
        return "; is the head's dashboard (port 8265) running and reachable from here?"
    return ""
