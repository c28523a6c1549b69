"""The options of `bench inference`: sizes, texts, device; checked before any weight is initialized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from launch.bench.benchmark_models import BenchmarkModel, benchmark_models
from models.config import FourierBackend
from models.cost.flops import Lengths

TRAINING_ROW = Lengths(512, 128)
"""That of the prefix-LM recipes."""


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """What to measure. Raises ValueError, which names the option, for a value that cannot be used."""

    size: str = "t5-v1.1-small"
    prefixes: tuple[int, ...] = (128, 512, 2048, 4096)
    new_tokens: tuple[int, ...] = (32, 256)
    batches: tuple[int, ...] = (1, 16)
    most_tokens: int | None = None
    """Cells whose batch x prefix exceeds it are skipped."""
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    rounds: int = 5
    vocab_size: int = 32128
    training_row: Lengths = TRAINING_ROW
    """Lengths at which training compute is equal."""
    fourier_backend: FourierBackend = "fft"

    def __post_init__(self) -> None:
        least = {"prefix": (self.prefixes, 1), "new": (self.new_tokens, 2), "batch": (self.batches, 1)}
        for option, (values, smallest) in least.items():
            wrong = [value for value in values if value < smallest]
            if wrong or not values:
                raise ValueError(f"--{option} {' '.join(map(str, wrong))}: give numbers of at least {smallest}")
        one = {
            "rounds": self.rounds,
            "vocabulary": self.vocab_size,
            "encoder-length": self.training_row.encoder,
            "decoder-length": self.training_row.decoder,
        }
        for option, value in one.items():
            if value < 1:
                raise ValueError(f"--{option} {value}: it must be at least 1")
        choices = {
            "device": (self.device, ("cpu", "cuda")),
            "precision": (self.precision, ("fp32", "bf16")),
            "backend": (self.fourier_backend, get_args(FourierBackend)),
        }
        for option, (chosen, known) in choices.items():
            if chosen not in known:
                raise ValueError(f"--{option} {chosen!r}: choose one of {', '.join(known)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no CUDA device here; give --device cpu, or a torch built for CUDA")
        if not self.cells:
            raise ValueError(
                f"--most-tokens {self.most_tokens}: no batch x prefix is that small, so nothing would be measured: raise it"
            )

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(batch, prefix) of everything that is measured."""
        return [cell for cell in self._all_cells() if not self.most_tokens or cell[0] * cell[1] <= self.most_tokens]

    @property
    def skipped(self) -> list[tuple[int, int]]:
        """(batch, prefix) of the cells that exceed most_tokens."""
        return [cell for cell in self._all_cells() if cell not in self.cells]

    def _all_cells(self) -> list[tuple[int, int]]:
        return [(batch, prefix) for batch in sorted(set(self.batches)) for prefix in sorted(set(self.prefixes))]

    def models(self) -> list[BenchmarkModel]:
        """The models to compare, of both pairings."""
        longest = max(self.prefixes) + max(self.new_tokens)
        return benchmark_models(self.size, self.vocab_size, self.training_row, longest, self.fourier_backend)
