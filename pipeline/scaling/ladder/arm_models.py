"""The arms by name: what each changes of the T5 that it is compared with.

t5                        the baseline
fnet_t5                   the hybrid: Fourier mixing in the encoder, all dimensions kept, so smaller and cheaper
fnet_t5_equal_parameters  the hybrid with a wider feed-forward in the encoder, as many parameters as the T5
fnet_t5_equal_flops       … as many FLOPs a row
fnet_t5_top2              the hybrid whose two last encoder layers keep attention (FNet, arXiv:2105.03824, section 4)
ff_only                   the control: no mixing at all in the encoder, all dimensions kept
gpt2                      GPT-2's block and proportions, as many parameters as the T5 (`models/matching/matched_decoder.py`)
prefix_decoder            the T5's own block and width without an encoder, which sees the prefix in both directions; the depth
                          that comes nearest to the T5's parameters
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.matching.compute_matched import compute_matched, nearest
from models.matching.matched_decoder import gpt2_of_equal_parameters

ArmModel = Callable[[ModelConfig, Lengths], ModelConfig]


def arm_model(arm: str, size: dict[str, Any], vocab_size: int, lengths: Lengths) -> ModelConfig:
    """The model of an arm at a size, whose `model` section is the T5's. Raises ValueError where there is no such T5."""
    section = expand_size({**size, "architecture": "t5", "vocab_size": vocab_size})
    return ARM_MODELS[arm](ModelConfig(**section), lengths)


def _hybrid(t5: ModelConfig, **changes: Any) -> ModelConfig:
    return replace(t5, architecture="fnet_t5", mixing="fourier", **changes)


def _top2(t5: ModelConfig, lengths: Lengths) -> ModelConfig:
    if t5.num_encoder_layers <= 2:
        raise ValueError(
            f"fnet_t5_top2 keeps attention in 2 encoder layers, and {t5.size} has {t5.num_encoder_layers}: that would be a T5; "
            "leave the size out of the arm's sizes"
        )
    return _hybrid(t5, num_attention_layers=2, attention_layout="top")


def _gpt2(t5: ModelConfig, lengths: Lengths) -> ModelConfig:
    return gpt2_of_equal_parameters(t5, max_length=lengths.encoder + lengths.decoder)


def _prefix_decoder(t5: ModelConfig, lengths: Lengths) -> ModelConfig:
    def of_depth(layers: int) -> ModelConfig:
        return replace(t5, architecture="prefix_decoder", size="custom", num_encoder_layers=0, num_decoder_layers=layers)

    return nearest(of_depth, num_parameters, num_parameters(t5))


def _matched(matching: str) -> ArmModel:
    return lambda t5, lengths: compute_matched(t5, lengths)[matching].config  # type: ignore[index]


ARM_MODELS: dict[str, ArmModel] = {
    "t5": lambda t5, lengths: t5,
    "fnet_t5": lambda t5, lengths: _hybrid(t5),
    "fnet_t5_equal_parameters": _matched("equal_parameters"),
    "fnet_t5_equal_flops": _matched("equal_flops_width"),
    "fnet_t5_top2": _top2,
    "ff_only": lambda t5, lengths: replace(t5, architecture="fnet_t5", mixing="identity"),
    "gpt2": _gpt2,
    "prefix_decoder": _prefix_decoder,
}
