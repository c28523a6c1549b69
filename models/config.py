"""What a model is: one frozen record of dimensions, and the table of published sizes that recipes name.

Sizes: T5 v1.0 from Raffel et al. 2020 (arXiv:1910.10683), v1.1 from google-research/text-to-text-transfer-transformer
(`released_checkpoints.md`); attention layouts as FNet names them (arXiv:2105.03824, `f_net/configs/base.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

Architecture = Literal["fnet_t5", "t5"]
MixingName = Literal["fourier"]
AttentionLayout = Literal["bottom", "middle", "mixed", "top"]
FeedForwardKind = Literal["relu", "gated_gelu"]

VOCABULARY_MULTIPLE = 128  # Megatron's padding: every tensor-parallel degree up to 128 divides the vocabulary


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Dimensions of an encoder-decoder. Raises ValueError, naming the key, where they cannot be built.

    `vocab_size` 0 means "the tokenizer's": the trainer fills it in before it builds anything.
    """

    # Read by pydantic where a recipe is validated; a plain attribute, so that this floor does not import pydantic.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    size: str = "custom"
    architecture: Architecture = "fnet_t5"
    mixing: MixingName = "fourier"
    num_attention_layers: int = 0
    attention_layout: AttentionLayout = "top"
    feed_forward: FeedForwardKind = "gated_gelu"
    tie_embeddings: bool = True
    vocab_size: int = 0
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("d_model", "d_ff", "d_kv", "num_heads", "num_encoder_layers", "num_decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if self.vocab_size < 0:
            raise ValueError(f"model.vocab_size is {self.vocab_size}: give 0 (the tokenizer's) or a positive number")
        if not 0 <= self.num_attention_layers <= self.num_encoder_layers:
            raise ValueError(
                f"model.num_attention_layers is {self.num_attention_layers}: "
                f"it must lie between 0 and num_encoder_layers ({self.num_encoder_layers})"
            )
        if self.num_buckets < 4 or self.num_buckets % 2:
            raise ValueError(f"model.num_buckets is {self.num_buckets}: it must be an even number of at least 4")
        if self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"model.max_distance is {self.max_distance}: it must exceed half of num_buckets ({self.num_buckets})"
            )

    @property
    def inner_dim(self) -> int:
        """Width of all heads together: may differ from d_model (T5-3B)."""
        return self.num_heads * self.d_kv

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to a multiple of 128."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    def encoder_layer_attends(self, layer: int) -> bool:
        """Whether encoder layer `layer` mixes tokens by attention (FNet's layout rules) or by `mixing`."""
        if self.architecture == "t5":
            return True
        total, attending = self.num_encoder_layers, self.num_attention_layers
        if attending == 0:
            return False
        if self.attention_layout == "bottom":
            return layer < attending
        if self.attention_layout == "middle":
            return total - attending <= 2 * layer < total + attending
        if self.attention_layout == "mixed":
            return layer % (total // attending) == 0
        return layer >= total - attending

    @property
    def encoder_has_attention(self) -> bool:
        return any(self.encoder_layer_attends(layer) for layer in range(self.num_encoder_layers))


def _t5(d_model: int, d_ff: int, d_kv: int, num_heads: int, layers: int) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "d_ff": d_ff,
        "d_kv": d_kv,
        "num_heads": num_heads,
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
    }


_V10 = {"feed_forward": "relu", "tie_embeddings": True}
_V11 = {"feed_forward": "gated_gelu", "tie_embeddings": False}

SIZES: dict[str, dict[str, Any]] = {
    "nano": _t5(64, 128, 16, 4, 2),
    "demo": {**_t5(128, 384, 32, 4, 2), **_V11},
    "t5-small": {**_t5(512, 2048, 64, 8, 6), **_V10},
    "t5-base": {**_t5(768, 3072, 64, 12, 12), **_V10},
    "t5-large": {**_t5(1024, 4096, 64, 16, 24), **_V10},
    "t5-3b": {**_t5(1024, 16384, 128, 32, 24), **_V10},
    "t5-11b": {**_t5(1024, 65536, 128, 128, 24), **_V10},
    "t5-v1.1-small": {**_t5(512, 1024, 64, 6, 8), **_V11},
    "t5-v1.1-base": {**_t5(768, 2048, 64, 12, 12), **_V11},
    "t5-v1.1-large": {**_t5(1024, 2816, 64, 16, 24), **_V11},
    "t5-v1.1-xl": {**_t5(2048, 5120, 64, 32, 24), **_V11},
    "t5-v1.1-xxl": {**_t5(4096, 10240, 64, 64, 24), **_V11},
}


def expand_size(section: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `model` section with the dimensions of its `size` filled in; explicit keys win.

    Raises ValueError for a size that the table does not hold.
    """
    size = section.get("size", "custom")
    if size == "custom":
        return dict(section)
    if size not in SIZES:
        raise ValueError(f"model.size is {size!r}: choose one of {', '.join(SIZES)}, or give every dimension yourself")
    return {**SIZES[size], **section}


def architectures() -> tuple[str, ...]:
    return get_args(Architecture)
