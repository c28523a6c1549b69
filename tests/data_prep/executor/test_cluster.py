"""Two Ray nodes, started as on a cluster, write one folder; one of them dies during the run."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from data_prep.dataset.manifest import load_manifest
from data_prep.files import sha256_file
from tests.helpers.processes import free_port

_RAY = str(Path(sys.executable).with_name("ray"))
# Set on every node and in the driver: an earlier embedded Ray may have left a token in the user's home folder.
_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "PYTHONSAFEPATH": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_PREPARE = "from launch.cli import main; main()"

pytestmark = pytest.mark.slow


@contextmanager
def _node(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One node with one CPU, in a separate process group that is killed at the end."""
    process = subprocess.Popen(
        [_RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=200000000", *arguments],
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _cluster() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of two nodes, and the process of the second."""
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(_node("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"))
        _await_port(port)
        second = stack.enter_context(_node(f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.1"))
        yield f"127.0.0.1:{port}", second


def _await_port(port: int) -> None:
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no Ray on port {port}")


def _await_nodes(address: str, number: int) -> None:
    program = f"""
import ray, time
from tests.helpers.processes import free_port
ray.init({address!r}, log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < {number}:
    time.sleep(0.2)
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **_ENVIRONMENT}, check=True, timeout=90)


def _start(corpus: Path, output: Path, tokenizer_file: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PREPARE, "prepare", "--input", f"{corpus}/*", "--output", str(output)]
    command += ["--tokenizer", str(tokenizer_file), "--workers", "2", *arguments]
    command += ["unit_bytes=40000", "max_bad_share=0.01"]
    environment = {**os.environ, **_ENVIRONMENT}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finished(process: subprocess.Popen[str]) -> None:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize("dies", [False, True])
def test_nodes_of_a_cluster_write_one_folder(dies: bool, big_corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    _finished(_start(big_corpus, tmp_path / "alone", tokenizer_file, "--workers", "1"))
    with _cluster() as (address, second):
        _await_nodes(address, 2)
        process = _start(big_corpus, tmp_path / "cluster", tokenizer_file, "--ray-address", address)
        units = tmp_path / "cluster" / ".work" / "units"
        while process.poll() is None and len(list(units.glob("*.json"))) < 20:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]
        if dies:
            _kill(second)
        _finished(process)
    assert _hashes(tmp_path / "cluster") == _hashes(tmp_path / "alone")
    manifest = load_manifest(tmp_path / "cluster")
    assert manifest.units > 40
    assert manifest.retokenized_units <= (4 if dies else 0)
