"""Submission of a rendered job, the same for every platform: keep the files, submit, write the record."""

from __future__ import annotations

from launch.cluster.platform import ClusterJob, RenderedScript, Submission
from launch.cluster.record import LaunchRecord, find_record, now, write_files, write_record
from launch.cluster.registry import find_platform


def submit_job(job: ClusterJob, scripts: tuple[RenderedScript, ...]) -> Submission:
    """Submit the scripts of a job and keep them with its record.

    Raises ValueError if an earlier job of the folder must end first, or if the platform refuses; then no record is written.
    """
    platform = find_platform(job.cluster.platform)
    earlier = find_record(job.launch_folder)
    if earlier is not None and earlier.platform == job.cluster.platform:
        platform.check_earlier(earlier)
    for script in scripts:
        write_files(job.launch_folder, {script.name: script.text, **script.companions})
    submission = platform.submit(job, scripts)
    write_record(job.launch_folder, _record(job, scripts[-1], submission))
    return submission


def _record(job: ClusterJob, script: RenderedScript, submission: Submission) -> LaunchRecord:
    values = {
        "platform": job.cluster.platform,
        "what": job.kind,
        "name": job.folder.name,
        "file": (job.launch_folder / script.name).absolute(),
        "folder": job.folder,
        "job_id": submission.job_id,
        "logs": submission.logs,
        "submitted": now(),
    }
    return LaunchRecord.model_validate({**values, **submission.details})
