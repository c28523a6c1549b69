"""The example runs to its end; a second start repeats no work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # two starts of training and one of Ray: over a minute on a busy machine
def test_two_encoders(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, repository / "examples/two_encoders.py", "--output", "out", "--steps", "3", "--megabytes", "1"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "MLFLOW_TRACKING_URI")}
    environment |= {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}

    def run() -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = run()
    assert output.count("\n$ fnet-t5 ") == 5
    assert "bits per byte" in output.lower()
    for architecture in ("fnet_t5", "t5"):
        assert (tmp_path / "out" / architecture / "STATUS").read_text() == "finished\n"
    assert (tmp_path / "out/exported/model.safetensors").is_file()
    again = run()
    assert "Collecting" not in again
    assert again.count("is finished at step 3") == 2
