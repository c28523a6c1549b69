"""The complete demo, run by its command with a small model: killed, interrupted, resumed, shown again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import zstandard

from data_prep.tokenization.tokenizer import load_tokenizer
from launch.demo.findings import Findings
from pipeline.tracking.metrics import read_metrics

COMMAND = Path(sys.executable).with_name("fnet-t5")
SMALL = [
    "model.d_model=64",
    "model.d_ff=128",
    "model.d_kv=16",
    "train.steps=150",
    "optimizer.decay_steps=400",  # 150 steps beat the unigram model only if the learning rate stays high
    "train.checkpoint_every=20",
    "train.validate_every=150",
    "data.validation_rows=200",
    "data.encoder_length=48",
    "data.decoder_length=16",
    "optimizer.warmup_steps=10",
    "optimizer.learning_rate=0.004",
]


class DemoFolder:
    def __init__(self, home: Path) -> None:
        self.folder = home / "demo"
        self.extensions = home / "torch_extensions"
        self.output = home / "output.txt"

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(self.extensions), "COLUMNS": "120"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self.output.open("wb") as file:
            return subprocess.Popen(
                [COMMAND, "demo", "--output", str(self.folder), *SMALL],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder.parent,
                start_new_session=True,
            )

    def wait_for(self, condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)

    def has_worker_logs(self) -> bool:
        return (self.folder / "run/logs/rank_3.log").is_file()

    def has_checkpoint(self) -> bool:
        return (self.folder / "run/checkpoints/latest").is_file()

    def leftovers(self) -> list[str]:
        """Command lines of live processes that mention this demo's folder."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(line)
        return found

    def assert_nothing_is_left(self) -> None:
        deadline = time.monotonic() + 30
        while self.leftovers() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.leftovers() == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFolder:
    """A finished demo, killed with SIGKILL while its ranks started, then interrupted with Ctrl-C after a checkpoint."""
    folder = DemoFolder(tmp_path_factory.mktemp("home"))
    process = folder.start()
    folder.wait_for(folder.has_worker_logs, process)
    process.kill()
    process.wait()
    folder.assert_nothing_is_left()

    process = folder.start()
    folder.wait_for(folder.has_checkpoint, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 130, folder.output.read_text()
    assert "Resuming" in folder.output.read_text()
    assert (folder.folder / "run/STATUS").read_text() == "preempted\n"
    folder.assert_nothing_is_left()

    process = folder.start()
    assert process.wait(240) == 0, folder.output.read_text()
    folder.assert_nothing_is_left()
    return folder


def test_no_extension_is_compiled(demo: DemoFolder) -> None:
    assert not demo.extensions.exists() or not any(demo.extensions.rglob("*"))


def test_training_resumed_at_the_last_checkpoint(demo: DemoFolder) -> None:
    steps = [row["step"] for row in read_metrics(demo.folder / "run/metrics.jsonl") if "loss" in row]
    assert steps == sorted(set(steps))
    assert steps[-1] == 150
    assert (demo.folder / "run/STATUS").read_text() == "finished\n"


def test_page_shows_the_measurements(demo: DemoFolder) -> None:
    page = (demo.folder / "page.txt").read_text()
    result = json.loads((demo.folder / "result.json").read_text())
    names = {name: result[name] for name in Findings.__dataclass_fields__}
    assert Findings(**names).problems == []
    for name in ("loss", "mesh_loss", "unigram_loss", "swapped_loss", "bits_per_byte", "training_loss_first"):
        assert f"{result[name]:.4f}" in page
    assert f"mlflow ui --backend-store-uri sqlite:///{demo.folder}/mlflow.db" in page
    assert (demo.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < result["peak_memory_bytes"] < 6 * 2**30


def test_corpus_comes_from_this_installation(demo: DemoFolder) -> None:
    shards = sorted((demo.folder / "raw").rglob("*.jsonl.zst"))
    assert [str(path.relative_to(demo.folder / "raw")) for path in shards] == [
        "test.jsonl.zst",
        *(f"train/0{number}.jsonl.zst" for number in range(4)),
        "val.jsonl.zst",
    ]
    records = [json.loads(line) for path in shards for line in zstandard.open(path, "rt", encoding="utf-8")]
    assert 15e6 < sum(len(record["text"].encode()) for record in records) < 25e6
    assert len({record["meta"]["pile_set_name"] for record in records}) >= 4


def test_megatron_reads_the_tokens_of_the_documents(demo: DemoFolder) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokenizer = load_tokenizer(demo.folder / "data/tokenizer.json")
    dataset = IndexedDataset(str(demo.folder / "data/train"))
    shards = sorted((demo.folder / "raw/train").glob("*.jsonl.zst"))
    texts = [json.loads(line)["text"] for path in shards for line in zstandard.open(path, "rt", encoding="utf-8")]
    assert len(dataset) == len(texts)
    for index in range(0, len(texts), 29):
        expected = [*tokenizer.encode(texts[index], add_special_tokens=False).ids, tokenizer.token_to_id("</s>")]
        assert np.array_equal(dataset[index], expected)


def test_a_second_start_shows_the_page_again(demo: DemoFolder) -> None:
    page = (demo.folder / "page.txt").read_text()
    process = demo.start()
    assert process.wait(120) == 0
    output = demo.output.read_text()
    assert "finished demo" in output
    assert "training, last step" in output
    assert (demo.folder / "page.txt").read_text() == page


def test_the_model_generates_text_and_is_evaluated(demo: DemoFolder) -> None:
    run = str(demo.folder / "run")
    generate = [COMMAND, "generate", run, "--max-new-tokens", "20", "--temperature", "1", "--seed", "3"]
    written = [
        subprocess.run(generate, input="import os\n", capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert written[0] == written[1]
    assert written[0].strip()
    evaluated = subprocess.run([COMMAND, "evaluate", run, "--json"], capture_output=True, text=True, check=True)
    result = json.loads((demo.folder / "result.json").read_text())
    assert json.loads(evaluated.stdout)["loss"] == pytest.approx(result["mesh_loss"], rel=1e-5)


def test_a_folder_with_other_files_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refused = subprocess.run([COMMAND, "demo", "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "holds files that are not a demo's" in refused.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"
