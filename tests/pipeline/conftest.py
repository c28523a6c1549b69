"""Dataset folders made in milliseconds, and a way to start processes of the mesh."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="session")
def write_folder() -> Callable[..., Path]:
    """Write a finished dataset folder of given documents, in milliseconds: the files of `prepare`, made by its parts."""
    from data_prep.dataset.indexed_dataset import TokenFileWriter
    from data_prep.dataset.manifest import (
        EngineRecord,
        Manifest,
        SourceCounts,
        SplitRecord,
        TokenizerRecord,
        describe_files,
        write_manifest,
    )
    from data_prep.dataset.packing import rows_file
    from data_prep.dataset.row_index import write_row_index
    from data_prep.tokenization.tokenizer import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(["the same words again and again. "] * 20, 420)

    def write(
        folder: Path,
        documents: list[list[int]],
        row_lengths: tuple[int, ...] = (),
        split: str = "train",
        sources: list[str] | None = None,
        tokenizer_sha256: str = "",
    ) -> Path:
        folder.mkdir(parents=True)
        with TokenFileWriter(folder / split, np.dtype("<i4")) as writer:
            for document in documents:
                writer.add(np.array(document, dtype=np.int32))
        lengths = np.array([len(document) for document in documents], dtype=np.int32)
        packing = [write_row_index(folder / rows_file(split, n), lengths, n, "best_fit") for n in row_lengths]
        save_tokenizer(tokenizer, folder / "tokenizer.json")
        names = sorted(set(sources or ["one"]))
        if sources is not None:
            np.save(folder / f"{split}.sources.npy", np.array([names.index(name) for name in sources], dtype=np.uint16))
        counts = {name: SourceCounts(documents=1, tokens=1, bytes=1) for name in names}
        manifest = Manifest(
            command="a test",
            config={},
            config_sha256="",
            tokenizer=TokenizerRecord(sha256=tokenizer_sha256, vocab_size=420, eos_id=1),
            token_dtype="int32",
            inputs=[],
            splits={split: SplitRecord(sources=counts, length_histogram={}, packing=packing)},
            records=0,
            rejected={},
            dropped={},
            blank_lines=0,
            skipped_inputs={},
            engine=EngineRecord(name="none", note=None, checked_documents=0),
            units=0,
            retokenized_units=0,
            stage_seconds={},
            files=describe_files(folder),
        )
        write_manifest(folder, manifest)
        return folder

    return write


@pytest.fixture(scope="session")
def numbered_documents() -> Callable[..., list[list[int]]]:
    """Documents whose tokens are all different, numbered in the order of the corpus: coverage can be read off the tokens."""

    def make(num_documents: int, longest: int, first: int = 1000, seed: int = 0) -> list[list[int]]:
        documents = []
        for length in np.random.default_rng(seed).integers(1, longest + 1, num_documents).tolist():
            documents.append(list(range(first, first + length)))
            first += length
        return documents

    return make


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
        command = [sys.executable, str(HELPERS / script), *map(str, arguments)]
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
