"""The evaluation of a trained demo run: its losses, two reference losses, and generated text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_prep.tokenization.tokenizer import TOKENIZER_FILE, load_tokenizer
from models.generation.sampling import Sampling
from pipeline.config import DataConfig
from pipeline.data.batches import Rows
from pipeline.eval.evaluate import Evaluation, evaluate, load_model
from pipeline.eval.generate import write_text
from pipeline.run_folder import METRICS
from pipeline.tracking.metrics import read_metrics

SAMPLING = Sampling(max_new_tokens=60, temperature=0.7, top_k=40, seed=0)
_PREFIX_SHOWN = 400
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Findings(Evaluation):
    """The evaluation by one process, the loss that the mesh computed, and generated text. Losses in nats per target token."""

    num_parameters: int
    training_loss_first: float
    training_loss_last: float
    mesh_loss: float
    """Validation loss by the processes of the mesh at the end of training."""
    tokens_per_second: float
    training_seconds: float
    training_flops: float
    prefix: str
    """The end of the text that the encoder read."""
    continuation: str
    original: str

    @property
    def meshes_agree(self) -> bool:
        return abs(self.loss - self.mesh_loss) <= _TOLERANCE * self.mesh_loss

    @property
    def beats_unigram(self) -> bool:
        return self.loss < self.unigram_loss

    @property
    def uses_encoder(self) -> bool:
        return self.swapped_loss is not None and self.swapped_loss > self.loss

    @property
    def problems(self) -> list[str]:
        """The claims of the demo that do not hold; empty if all of them hold."""
        claims = {
            "one process computes another validation loss than the mesh": self.meshes_agree,
            "the validation loss is not below the unigram model's": self.beats_unigram,
            "swapping encoder inputs does not raise the loss: the decoder does not use the encoder": self.uses_encoder,
        }
        return [problem for problem, holds in claims.items() if not holds]


def findings(run: Path) -> Findings:
    """Evaluate the run's latest checkpoint in this process, and continue a held-out prefix with it."""
    rows = read_metrics(run / METRICS)
    trained = [row for row in rows if "loss" in row]
    validated = [row for row in rows if row.get("source") == "all"]
    evaluation = evaluate(run)
    model, config, _ = load_model(run)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    prefix, original = _held_out_row(config.data, tokenizer)
    continuation = "".join(write_text(model, tokenizer, prefix, config.data.encoder_length, SAMPLING))
    last = trained[-1]
    positions = last["encoder_tokens"] + last["decoder_tokens"]
    return Findings(
        **asdict(evaluation),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        training_loss_first=trained[0]["loss"],
        training_loss_last=last["loss"],
        mesh_loss=validated[-1]["validation_loss"],
        tokens_per_second=positions / last["seconds"],
        training_seconds=last["seconds"],
        training_flops=last["flops"],
        prefix=prefix[-_PREFIX_SHOWN:],
        continuation=continuation,
        original=original,
    )


def _held_out_row(config: DataConfig, tokenizer: Tokenizer) -> tuple[str, str]:
    """A full row of one document of the test split: the text that the encoder reads, and the text after it."""
    rows = Rows(config.path, "test", config.row_length)
    numbers = np.arange(len(rows))
    whole = numbers[rows.lengths(numbers) == config.row_length]
    of_one_document = [row for row in whole if len(rows.packed.pieces(int(row))[0]) == 1]
    ids = rows.read(np.array([of_one_document[0] if of_one_document else 0]))[0][0].tolist()
    return tokenizer.decode(ids[: config.encoder_length]), tokenizer.decode(ids[config.encoder_length :])
