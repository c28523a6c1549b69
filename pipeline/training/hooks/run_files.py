"""The small files of a run folder that describe the run: its tokenizer, provenance.json and STATUS."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from data_prep.tokenization.tokenizer import TOKENIZER_FILE
from pipeline.run_folder import write_status
from pipeline.tracking.provenance import write_provenance
from pipeline.training.hooks.hook import Hook

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class RunFiles(Hook):
    """STATUS is `running` between start and end. For the main rank."""

    def on_start(self, trainer: Trainer) -> None:
        run = trainer.run_folder
        # so that a run folder can generate text without its data
        shutil.copyfile(trainer.config.data.path / TOKENIZER_FILE, run / TOKENIZER_FILE)
        write_provenance(run)
        write_status(run, "running")

    def on_end(self, trainer: Trainer, status: str) -> None:
        write_status(trainer.run_folder, status)
