"""Text that the model generates at every validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
from pipeline.eval.samples import generate_samples
from pipeline.eval.validation import first_rows
from pipeline.run_folder import step_name
from pipeline.training.hooks.hook import Hook

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer


class Samples(Hook):
    """Writes `num_samples` texts of `num_tokens` new tokens to RUN/samples/step_….txt: a collective."""

    def __init__(self, num_samples: int, num_tokens: int) -> None:
        self._num_samples, self._num_tokens = num_samples, num_tokens

    def on_start(self, trainer: Trainer) -> None:
        self._rows = first_rows(trainer.config)
        self._tokenizer = load_tokenizer(trainer.config.data.path / TOKENIZER_FILE)

    def on_validate(self, trainer: Trainer, losses: dict[str, float]) -> None:
        samples = generate_samples(trainer.engine, self._rows, self._num_samples, self._num_tokens)
        if not samples or not trainer.mesh.is_main:
            return
        decode = self._tokenizer.decode
        path = trainer.run_folder / "samples" / f"{step_name(trainer.step)}.txt"
        path.parent.mkdir(exist_ok=True)
        texts = [f"given: {decode(prompt)}\nwritten: {decode(generated)}\n" for prompt, generated in samples]
        path.write_text("\n".join(texts), encoding="utf-8")
        trainer.hooks.on_artifact(trainer, path, "samples")
