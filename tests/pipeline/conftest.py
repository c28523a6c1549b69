"""A small dataset folder made by the real `prepare`, and a way to start processes of the mesh."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared rows of 24 tokens (16 + 8) from the documentation that comes with Python."""
    from pydoc_data.topics import topics

    from data_prep.config import PrepareConfig
    from data_prep.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    names = sorted(topics)
    for split, chosen in (("train", names[:-12]), ("val", names[-12:])):
        lines = [orjson.dumps({"text": topics[name], "meta": {"pile_set_name": "Python documentation"}}) for name in chosen]
        (folder / f"{split}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    prepare(
        PrepareConfig(
            input=[str(folder / "train.jsonl")],
            val=[str(folder / "val.jsonl")],
            output=folder / "data",
            vocab_size=600,
            workers=1,
            packing={"lengths": [24]},
        )
    )
    return folder / "data"


@pytest.fixture(scope="session")
def start_processes() -> Callable[..., None]:
    """Run a script by path in N gloo processes and wait; fails with the end of every process's output."""

    def start(num_processes: int, script: str, *arguments: object, timeout: float = 480) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {
            **os.environ,
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONSAFEPATH": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        processes = [
            subprocess.Popen(
                command,
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(num_processes)
        ]
        try:
            outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        failed = [
            f"rank {rank}, exit code {process.returncode}:\n{output[-3000:]}"
            for rank, (process, output) in enumerate(zip(processes, outputs, strict=True))
            if process.returncode
        ]
        assert not failed, "\n".join(failed)

    return start
