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
causal                    as prefix_decoder, but causal over prefix and suffix, and trained on causal_lm, as gpt2 is
fnet_t5_positions         the hybrid with learnt positions in its encoder (`model.encoder_positions`), as FNet has them
fnet_t5_top2_positions    fnet_t5_top2 with them, beside the relative bias of its attention
ff_only_positions         the control with them
fnet_t5_top2_learned_only fnet_t5_top2 with them, in place of the relative bias
t5_positions              the T5 with them, beside its relative bias
t5_learned_only           the T5 with them, in place of the relative bias of its encoder
t5_no_positions           the T5 without any positions in its encoder; its decoder keeps its own
t5_deep_encoder           the T5 with half of its decoder layers (rounded up) moved to its encoder: 4 + 1 for 3 + 2, 6 + 2 for
                          4 + 4. An encoder layer has no cross-attention, so each moved layer makes the model 4 d_model x heads'
                          width smaller; and it may run on more or on fewer tokens than before
fnet_t5_deep_encoder      the hybrid of that T5
fnet_t5_deep_encoder_positions  … with learnt positions

What mixes tokens in the encoder, and the positions that it has:

            no learnt positions                                     learnt positions
no mixing   ff_only                                                 ff_only_positions
Fourier     fnet_t5                                                 fnet_t5_positions
attention   t5_no_positions; t5, which has a relative bias instead  t5_learned_only; t5_positions, which has the bias too

Fourier mixing is not blind to order by itself: its sums over tokens have weights by position. No arm is a model without a
prefix: that is a change of the data, in training and in every evaluation, not of the model.

A size is given by its T5. A decoder-only arm has about the parameters of that T5 and spends more FLOPs a token, so its best
size at a budget is smaller: `arms.gpt2.sizes` names its own sizes, at least four, with smaller ones than the T5's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.matching.compute_matched import compute_matched, nearest
from models.matching.matched_decoder import gpt2_of_equal_parameters
from models.sizes import DECODER_ONLY

DECODER_ONLY_ARMS = (*DECODER_ONLY, "causal")

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


def _one_stack(t5: ModelConfig, architecture: Literal["prefix_decoder", "gpt2"]) -> ModelConfig:
    def of_depth(layers: int) -> ModelConfig:
        return replace(t5, architecture=architecture, size="custom", num_encoder_layers=0, num_decoder_layers=layers)

    return nearest(of_depth, num_parameters, num_parameters(t5))


def _causal(t5: ModelConfig, lengths: Lengths) -> ModelConfig:
    # gpt2 is the causal stack; its block is what the other keys say, and they stay the T5's
    if t5.inner_dim != t5.d_model or t5.dropout:
        raise ValueError(
            f"causal has T5's block in the stack of gpt2, which takes heads as wide together as d_model ({t5.d_model}) and "
            f"drops out elsewhere than a T5; this T5's heads are {t5.inner_dim} wide and its dropout is {t5.dropout}: leave "
            "the size out of the arm's sizes"
        )
    return _one_stack(t5, "gpt2")


def _with_positions(model: ModelConfig, lengths: Lengths, kind: Literal["learned", "learned_only"] = "learned") -> ModelConfig:
    """`max_length` is as long as the rows need: each further position would be a parameter that is never trained."""
    return replace(model, encoder_positions=kind, max_length=max(lengths.encoder, lengths.decoder))


def _ff_only(t5: ModelConfig) -> ModelConfig:
    return replace(t5, architecture="fnet_t5", mixing="identity")


def _deep(t5: ModelConfig) -> ModelConfig:
    moved = (t5.num_decoder_layers + 1) // 2
    if moved == t5.num_decoder_layers:
        raise ValueError(
            f"deep_encoder moves half of the decoder's layers, and {t5.size} has {t5.num_decoder_layers}: leave the size out "
            "of the arm's sizes"
        )
    encoder, decoder = t5.num_encoder_layers + moved, t5.num_decoder_layers - moved
    return replace(t5, size="custom", num_encoder_layers=encoder, num_decoder_layers=decoder)


def _matched(matching: str) -> ArmModel:
    return lambda t5, lengths: compute_matched(t5, lengths)[matching].config  # type: ignore[index]


ARM_MODELS: dict[str, ArmModel] = {
    "t5": lambda t5, lengths: t5,
    "fnet_t5": lambda t5, lengths: _hybrid(t5),
    "fnet_t5_equal_parameters": _matched("equal_parameters"),
    "fnet_t5_equal_flops": _matched("equal_flops_width"),
    "fnet_t5_top2": _top2,
    "ff_only": lambda t5, lengths: _ff_only(t5),
    "gpt2": _gpt2,
    "prefix_decoder": lambda t5, lengths: _one_stack(t5, "prefix_decoder"),
    "causal": _causal,
    "fnet_t5_positions": lambda t5, lengths: _with_positions(_hybrid(t5), lengths),
    "fnet_t5_top2_positions": lambda t5, lengths: _with_positions(_top2(t5, lengths), lengths),
    "ff_only_positions": lambda t5, lengths: _with_positions(_ff_only(t5), lengths),
    "fnet_t5_top2_learned_only": lambda t5, lengths: _with_positions(_top2(t5, lengths), lengths, "learned_only"),
    "t5_positions": _with_positions,
    "t5_learned_only": lambda t5, lengths: _with_positions(t5, lengths, "learned_only"),
    "t5_deep_encoder": lambda t5, lengths: _deep(t5),
    "fnet_t5_deep_encoder": lambda t5, lengths: _hybrid(_deep(t5)),
    "fnet_t5_deep_encoder_positions": lambda t5, lengths: _with_positions(_hybrid(_deep(t5)), lengths),
    "t5_no_positions": lambda t5, lengths: replace(t5, encoder_positions="none"),
}
