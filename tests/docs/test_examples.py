"""The example runs to its end, and a second start repeats no work. The notebook reads committed and made-up runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from pipeline.scaling.results import collect
from pipeline.scaling.run_table import curves_parquet, table_parquet
from tests.helpers.ladders import write_made_up_ladder


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


def run_notebook(path: Path) -> dict[str, Any]:
    """The variables after all code cells have run, in order."""
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(path), "exec"), names)
    return names


def test_the_notebook_reads_a_report(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    (results,) = collect([write_made_up_ladder(tmp_path)]).sets
    shown = [(results.name, results.measure, results.results)]
    (tmp_path / "runs.parquet").write_bytes(table_parquet(shown))
    (tmp_path / "curves.parquet").write_bytes(curves_parquet(shown))
    monkeypatch.setenv("FNET_T5_REPORT", str(tmp_path))
    found = run_notebook(repository / "examples/read_runs.ipynb")
    assert len(found["axis"].lines) == 5  # arms
    of_encoder_decoders = [one for one in results.results if one.point.arm != "gpt2"]
    assert len(found["order_axis"].lines) == len(results.results) >= len(of_encoder_decoders)
    assert (found["checks"]["shuffle_cost"] > 0.4).all()


def test_the_notebook_reads_what_is_committed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.delenv("FNET_T5_REPORT", raising=False)
    monkeypatch.chdir(repository / "examples")
    found = run_notebook(repository / "examples/read_runs.ipynb")
    assert len(found["runs"]) == 60
    assert len(found["axis"].lines) == 8
    assert found["checks"]["shuffle_cost"].isna().all()
