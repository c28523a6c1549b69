"""From text to two trained models, their comparison and an exported one, in about four minutes on two busy cores.

    python examples/two_encoders.py [--output runs/two-encoders] [--steps 150]

The same decoder is trained behind a Fourier encoder (fnet_t5) and an attention encoder (t5), on the same batches, for the
same number of steps. Every step is a command of `fnet-t5`, printed before it runs. Rerun the script to resume it.

What the result says: that every part works, and what each run cost. What it does not say: which encoder is better. That takes
tuned learning rates, several sizes and seeds, and a check that the models use the order of their input (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from launch.demo.corpus import write_corpus

ENCODERS = ("fnet_t5", "t5")
ENCODER_LENGTH, DECODER_LENGTH = 128, 32
FNET_T5 = Path(sys.executable).with_name("fnet-t5")


def main() -> None:
    options = parse_options()
    folder, begin = options.output, time.monotonic()
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    raw, data = folder / "raw", folder / "data"

    if not any(raw.rglob("*.jsonl.zst")):
        print(f"Collecting {options.megabytes:g} MB of text from this Python installation", flush=True)
        raw.mkdir(parents=True, exist_ok=True)
        write_corpus(raw, max_bytes=int(options.megabytes * 1e6))
    prepare(raw, data)
    for architecture in ENCODERS:
        train(architecture, data, folder / architecture, options.steps)
    fnet_t5(
        "compare", *(folder / name for name in ENCODERS), "--prefix", ENCODER_LENGTH, "--suffix", DECODER_LENGTH, "--rows", 64
    )
    if not (folder / "exported").exists():
        fnet_t5("export", folder / "fnet_t5", "--output", folder / "exported")
    print(f"Done in {time.monotonic() - begin:.0f} s. The exported model is in {folder / 'exported'}.")


def prepare(raw: Path, data: Path) -> None:
    """Tokenize and pack the text into rows of encoder and decoder length together; a tenth of the documents is held out."""
    rows = f"packing.lengths=[{ENCODER_LENGTH + DECODER_LENGTH}]"
    inputs = sorted(raw.rglob("*.jsonl.zst"))
    shares = ("val_share=0.1", "test_share=0")
    fnet_t5("prepare", "--input", *inputs, "--output", data, "--workers", 2, "vocab_size=1024", rows, *shares)


def train(architecture: str, data: Path, run: Path, steps: int) -> None:
    """A model of size nano on one process, from the demo's recipe."""
    settings = {
        "model.architecture": architecture,
        "model.size": "nano",
        "data.path": data,
        "data.encoder_length": ENCODER_LENGTH,
        "data.decoder_length": DECODER_LENGTH,
        "mesh.tensor_parallel": 1,
        "mesh.pipeline_parallel": 1,
        "train.steps": steps,
        "optimizer.warmup_steps": max(1, steps // 10),
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    fnet_t5("train", "configs/train/demo.yaml", "--nproc", 1, "--output", run, *overrides)


def fnet_t5(*arguments: object) -> None:
    """Print and run a command; end the script with its exit code if it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ fnet-t5 {shlex.join(words)}", flush=True)
    done = subprocess.run([FNET_T5, *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/two-encoders"), help="folder for everything that is made")
    parser.add_argument("--steps", type=int, default=150, help="training steps of each model")
    parser.add_argument("--megabytes", type=float, default=4, help="text to collect")
    return parser.parse_args()


if __name__ == "__main__":
    main()
