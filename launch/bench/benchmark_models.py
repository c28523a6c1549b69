"""The models that `bench inference` compares: a T5, and a hybrid and a GPT-2 of as many parameters or as much compute.

Compute is that of training: FLOPs of one row of the same raw text. An encoder-decoder encodes one part of it and decodes the
other; a GPT-2 reads all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from models.architectures.pieces import forward_flops
from models.config import SIZES, FourierBackend, ModelConfig, expand_size
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers
from models.matching.compute_matched import compute_matched
from models.matching.matched_decoder import gpt2_of_equal_flops, gpt2_of_equal_parameters

ArmName = Literal["fnet_t5", "t5", "gpt2"]
Pairing = Literal["equal_parameters", "equal_training_compute"]
TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class BenchmarkModel:
    """A model in a comparison."""

    pairing: Pairing
    name: ArmName
    config: ModelConfig
    parameters: int
    training_flops: float
    """Of one row: 3 x forward."""
    mismatch: float
    """What the pairing makes equal, relative to the T5's, minus 1."""


def two_stack_sizes() -> list[str]:
    """Sizes that a T5 can have."""
    return [name for name, values in SIZES.items() if values["num_encoder_layers"] and values["num_decoder_layers"]]


def benchmark_models(
    size: str,
    vocab_size: int,
    training_row: Lengths,
    max_length: int,
    fourier_backend: FourierBackend,
) -> list[BenchmarkModel]:
    """Three models in each of two pairings; the T5 is in both. `max_length`: tokens of the longest text of a GPT-2.

    Raises ValueError for a size without two stacks, and if a model cannot be brought within 2 % of the T5.
    """
    if size not in two_stack_sizes():
        raise ValueError(f"--size {size!r} is no size of a T5: choose one of {', '.join(two_stack_sizes())}")
    t5 = ModelConfig(**expand_size({"size": size, "architecture": "t5", "vocab_size": vocab_size}))
    hybrids = compute_matched(t5, training_row)
    positions = max(max_length, training_row.encoder + training_row.decoder)
    configs: dict[Pairing, tuple[ModelConfig, ModelConfig]] = {
        "equal_parameters": (hybrids["equal_parameters"].config, gpt2_of_equal_parameters(t5, positions)),
        "equal_training_compute": (hybrids["equal_flops_width"].config, gpt2_of_equal_flops(t5, training_row, positions)),
    }
    result = []
    for pairing, (hybrid, gpt2) in configs.items():
        trio: list[tuple[ArmName, ModelConfig]] = [
            ("fnet_t5", replace(hybrid, fourier_backend=fourier_backend)),
            ("t5", t5),
            ("gpt2", gpt2),
        ]
        result += [_model(pairing, name, config, t5, training_row) for name, config in trio]
    return result


def _model(pairing: Pairing, name: ArmName, config: ModelConfig, t5: ModelConfig, training_row: Lengths) -> BenchmarkModel:
    def flops_of(model: ModelConfig) -> float:
        return 3 * forward_flops(model, TorchLayers(), training_row)

    parameters, flops = num_parameters(config), flops_of(config)
    mismatch = parameters / num_parameters(t5) - 1 if pairing == "equal_parameters" else flops / flops_of(t5) - 1
    if abs(mismatch) > TOLERANCE:
        raise ValueError(
            f"--size {t5.size}: no {name} of {pairing.replace('_', ' ')} comes nearer than {mismatch:+.1%}, over "
            f"{TOLERANCE:.0%}: the vocabulary of {t5.vocab_size:,} and positions outweigh its layers; "
            "take a larger --size, a smaller --vocabulary or shorter texts"
        )
    return BenchmarkModel(
        pairing=pairing, name=name, config=config, parameters=parameters, training_flops=flops, mismatch=mismatch
    )
