"""A data preparation as a job on two Ray nodes: with and without a token, with another Ray's token, with a lost node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from data_prep.dataset.manifest import load_manifest
from data_prep.files import sha256_file
from launch.cluster.ray_jobs import submit
from launch.cluster.ray_on_slurm import await_nodes
from tests.helpers.processes import free_port

pytest.importorskip(
    "ray.dashboard.modules.job.job_manager", reason="Ray Jobs need more than plain Ray: pip install 'ray[default]'"
)

TOKEN = "the token of this cluster alone, as long as Ray wants it to be"
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--object-store-memory=200000000"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _node(log: Path, environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "ab") as file:
        # Another Ray may still use the agent's fixed port, and an agent without its port accepts no jobs.
        ports = (f"--dashboard-agent-listen-port={free_port()}", "--node-ip-address=127.0.0.1")
        command = [*RAY, *ports, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        _kill(process)


@contextmanager
def _cluster(folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The dashboard of a cluster of two nodes, and the second one's process."""
    port, dashboard = free_port(), free_port()
    # The head's PATH must have the job's command.
    environment = {**environment, "PATH": f"{folder}:{os.environ['PATH']}"}
    (folder / "fnet-t5").write_text(f'#!/bin/bash\nexec {sys.executable} -c "from launch.cli import main; main()" "$@"\n')
    (folder / "fnet-t5").chmod(0o755)
    head = ("--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}")
    with ExitStack() as stack:
        stack.enter_context(_node(folder / "head.log", environment, *head, f"--ray-client-server-port={free_port()}"))
        second = None
        program = [sys.executable, "-m", "launch.cluster.ray_on_slurm", "wait", f"127.0.0.1:{port}"]
        subprocess.run([*program, "1", "150"], env=environment, check=True, timeout=200)
        second = stack.enter_context(_node(folder / "second.log", environment, f"--address=127.0.0.1:{port}"))
        subprocess.run([*program, "2", "150"], env=environment, check=True, timeout=200)
        yield f"http://127.0.0.1:{dashboard}", second


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize(
    ("mode", "foreign_token", "dies"),
    [
        ("token", True, True),
        pytest.param("token", False, False, marks=pytest.mark.slow),
        pytest.param("disabled", True, False, marks=pytest.mark.slow),
        pytest.param("disabled", False, True, marks=pytest.mark.slow),
    ],
)
def test_a_job_on_two_nodes_writes_the_same_bytes(
    mode: str, foreign_token: bool, dies: bool, tmp_path: Path, environment: dict[str, str]
) -> None:
    raw = tmp_path / "raw.jsonl"
    texts = (f"document {i}: " + "words and words " * (i % 40) for i in range(6000))
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = ["--input", raw, "unit_bytes=20000", "vocab_size=420"]
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    if foreign_token:  # left by an embedded Ray
        (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    access = {
        "HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        **({"RAY_AUTH_TOKEN": TOKEN} if mode == "token" else {}),
    }

    def run(*arguments: object) -> str:  # each in a separate process, because Ray's client reads its token once
        program = [sys.executable, "-c", "from launch.cli import main; main()", *map(str, arguments)]
        done = subprocess.run(program, env={**environment, **access}, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("prepare", *settings, "--output", tmp_path / "local", "--workers", "1")
    output = tmp_path / "cluster"
    with _cluster(tmp_path, {**environment, **access, "RAY_AUTH_MODE": mode, "PYTHONSAFEPATH": "1"}) as (address, second):
        launch = ["launch", "ray", "prepare", "--ray-address", address, *settings, "--output", output, "--workers", "2"]
        run(*launch, "--set", f"ray.auth_mode={mode}")
        kept = Path("runs/cluster")
        units = output / ".work" / "units"
        deadline = time.monotonic() + 150
        while len(list(units.glob("*.json"))) < 3:
            assert time.monotonic() < deadline, run("launch", "logs", kept)
            time.sleep(0.02)
        if dies:
            _kill(second)
        while "RUNNING" in (state := run("launch", "status", kept)):
            assert time.monotonic() < deadline, run("launch", "logs", kept)
            time.sleep(1)
        logs = run("launch", "logs", kept, "-n", "1000")
        assert "SUCCEEDED" in state, logs
        assert "Records: 6,000 read = 6,000 kept" in logs
    assert _hashes(output) == _hashes(tmp_path / "local")
    assert load_manifest(output).units > 40


def test_an_address_without_a_dashboard_is_refused(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    launch = ["launch", "ray", "prepare", "--input", "/x", "--output", "/tmp/y"]
    assert command(*launch, "--ray-address", "ray://head:10001", "--keep", "/tmp/fnet-t5-none") == 1
    assert "Ray Jobs go through the dashboard; give http://HEAD:8265" in capsys.readouterr().err
    assert command("launch", "ray", "prepare", "--input", "raw/*", "--output", "/y", "--ray-address", "http://head:8265") == 1
    assert "raw/* is a relative path" in capsys.readouterr().err
    assert command("launch", "ray", "prepare", "--input", "/x", "--output", "/y") == 1
    assert "no Ray cluster is named: give --ray-address http://HEAD:8265" in capsys.readouterr().err


class _YoungHead(BaseHTTPRequestHandler):
    """A dashboard whose agent starts late: it refuses the first request, and accepts the second with an error message."""

    submissions: ClassVar[list[str]] = []

    def _answer(self, status: int, content: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode() if isinstance(content, str) else json.dumps(content).encode())

    def do_GET(self) -> None:  # the versions that Ray's client asks for, and the jobs
        job = {"type": "SUBMISSION", "status": "PENDING", "entrypoint": "true"}
        known = [{**job, "submission_id": name} for name in self.submissions[1:]]
        versions = {"version": "4", "ray_version": version("ray"), "ray_commit": "", "session_name": ""}
        self._answer(200, known if self.path.startswith("/api/jobs") else versions)

    def do_POST(self) -> None:
        self.submissions.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["submission_id"])
        self._answer(500, "No available agent to submit job, please try again later.")

    def log_message(self, *_: object) -> None:
        """Log nothing, to keep pytest's output readable."""


def test_the_request_is_repeated_while_the_heads_agent_is_starting(tmp_path: Path) -> None:
    _YoungHead.submissions.clear()
    (tmp_path / "job.yaml").write_text("entrypoint: 'true'\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), _YoungHead) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        submitted = submit(f"http://127.0.0.1:{server.server_port}", "disabled", tmp_path / "job.yaml")
        server.shutdown()
    assert _YoungHead.submissions == [submitted] * 2, "the second was accepted, so there is no third"


def test_missing_nodes_are_reported() -> None:
    with pytest.raises(TimeoutError, match=r"no Ray head answers at 127.0.0.1:9 .*see the log of its `ray start`"):
        await_nodes("127.0.0.1:9", 2, seconds=0.5)
