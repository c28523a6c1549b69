"""The configuration of a model: one frozen record of dimensions and choices, validated when it is made.

Attention layouts have FNet's names (arXiv:2105.03824, `f_net/configs/base.py`). Sizes and blocks by name: `sizes.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from models.sizes import BLOCKS, DECODER_ONLY, ENCODER_ONLY, SIZES, expand_size, shape_of

__all__ = ["SIZES", "BlockConfig", "ModelConfig", "architectures", "expand_size"]

Architecture = Literal["fnet_t5", "t5", "gpt2", "prefix_decoder", "fnet", "bert"]
MixingName = Literal["fourier", "hartley", "linear", "random", "identity", "attention", "causal_fourier"]
AttentionLayout = Literal["bottom", "middle", "mixed", "top"]
FourierNorm = Literal["ortho", "backward"]
FourierBackend = Literal["fft", "matmul", "folded", "auto"]
NormKind = Literal["rms", "layer"]
NormPosition = Literal["pre", "post"]
FeedForwardKind = Literal["relu", "gelu", "gelu_tanh", "gated_gelu", "swiglu"]
PositionKind = Literal["relative", "learned", "rope", "none"]
EncoderPositions = Literal["default", "learned", "learned_only", "none"]
HeadName = Literal["mlm", "order", "sequence", "token", "answer"]

GATED = ("gated_gelu", "swiglu")


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The choices of one stack: encoder and decoder may have different ones."""

    d_ff: int
    norm: NormKind
    norm_position: NormPosition
    norm_eps: float
    feed_forward: FeedForwardKind
    bias: bool
    position: PositionKind
    adds_positions: bool
    """Whether a learnt vector for each position is added to the input; an encoder may have it beside its relative bias."""
    scale_scores: bool
    fourier_norm: FourierNorm
    type_vocab_size: int
    project_input: bool

    @property
    def pre_norm(self) -> bool:
        return self.norm_position == "pre"

    @property
    def gated(self) -> bool:
        return self.feed_forward in GATED


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Dimensions and choices of a model. Raises ValueError, naming the key, for a model that cannot be built.

    `vocab_size` 0 means the tokenizer's size: the trainer sets it before it builds the model.
    """

    # pydantic reads this when it validates a recipe; a plain attribute, so that models/ does not import pydantic
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    d_model: int
    """Width of the residual stream, in features."""
    d_ff: int
    """Inner width of the feed-forward layers, in features."""
    d_kv: int
    """Width of one attention head, in features."""
    num_heads: int
    """Number of attention heads."""
    num_encoder_layers: int
    """Number of encoder layers; 0 in a decoder-only model."""
    num_decoder_layers: int
    """Number of decoder layers; 0 in an encoder-only model."""
    size: str = "custom"
    """Name of the size that the dimensions come from, such as t5-v1.1-small; custom: they are all given."""
    architecture: Architecture = "fnet_t5"
    """fnet_t5: FNet encoder and attention decoder; t5; gpt2 and prefix_decoder: decoder-only; fnet and bert: encoder-only."""
    mixing: MixingName = "fourier"
    """What mixes tokens in the encoder layers without attention."""
    num_attention_layers: int = 0
    """Encoder layers that keep attention instead of `mixing`."""
    attention_layout: AttentionLayout = "top"
    """Which encoder layers keep attention: the first (bottom), the middle, evenly spaced (mixed) or the last ones (top)."""
    feed_forward: FeedForwardKind = "gated_gelu"
    """Activation of the feed-forward layers; gated_gelu and swiglu have a gate."""
    tie_embeddings: bool = True
    """Whether the output head uses the embedding table."""
    vocab_size: int = 0
    """Number of token ids; 0: the tokenizer's."""
    num_buckets: int = 32
    """Buckets of the relative position bias: an even number of at least 4."""
    max_distance: int = 128
    """Distance in tokens from which all relative positions share one bucket."""
    norm_eps: float = 1e-6
    """Term in the denominator of the norms against division by 0."""

    encoder_d_ff: int = 0
    """Feed-forward width of the encoder; 0 means d_ff."""
    decoder_mixing: Literal["attention", "causal_fourier"] = "attention"
    """What mixes tokens in the decoder layers: causal self-attention or the causal Fourier transform."""
    fourier_norm: FourierNorm = "ortho"
    """backward is FNet's unnormalised transform: use it with a post-norm only."""
    fourier_backend: FourierBackend = "fft"
    """How the Fourier transform is computed; auto measures which is fastest and is for benchmarks only."""
    mix_within_documents: bool = False
    """Transform and attend inside each document of a packed row; masks then number the documents 1, 2, …"""
    norm: NormKind = "rms"
    """rms: root mean square norm without a bias; layer: layer norm."""
    norm_position: NormPosition = "pre"
    """pre: each sublayer's input is normalised; post: the sum after it."""
    bias: bool = False
    """Whether every linear layer has a bias."""
    position: PositionKind = "relative"
    """How positions enter: relative (T5's bias), learned (added vectors), rope (rotary) or none."""
    scale_scores: bool = False
    """Whether attention scores are divided by sqrt(d_kv); T5 does not do it."""
    dropout: float = 0.0
    """Share of features that dropout sets to 0 in training, from 0 up to but not including 1."""
    max_length: int = 512
    """Longest input of learnt positions, linear mixing and random mixing, and the period of causal Fourier mixing."""
    type_vocab_size: int = 0
    """Number of segment types whose vectors an encoder-only model adds to its embedding."""
    project_input: bool = False
    """FNet's linear layer between the embedding and the first layer."""
    encoder_block: Literal["same", "fnet"] = "same"
    """fnet: the encoder has FNet's blocks (post-norm, unnormalised, learnt positions), so that its checkpoints load."""
    encoder_positions: EncoderPositions = "default"
    """Positions of the encoder of fnet_t5 and t5. default: as `position` says; learned: learnt vectors are added to its input,
    beside a relative bias or rotations that it has; learned_only: in place of them; none: it has no positions at all, no
    relative bias either."""
    heads: tuple[HeadName, ...] = ("mlm", "order")
    """Heads of an encoder-only model."""
    num_labels: int = 2
    """Classes of the sequence classification head."""
    num_token_labels: int = 2
    """Classes of the token classification head."""
    init_std: float = 0.0
    """Standard deviation of every initial weight; 0 means T5's rule by fan-in."""
    rope_base: float = 10000.0
    """Base of the rotary positions' wavelengths."""
    vocab_multiple: int = 128
    """The embedding's rows are a multiple of this. 128 is Megatron's padding and fits tensor-parallel degrees 2, 4, … 128."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        if self.architecture in ("t5", "bert"):  # so that a hybrid's recipe needs no other change
            object.__setattr__(self, "mixing", "attention")
        for name in ("d_model", "d_ff", "d_kv", "num_heads", "max_length", "vocab_multiple", "num_labels", "num_token_labels"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("vocab_size", "encoder_d_ff", "type_vocab_size", "init_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be 0 (the default rule) or positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}: it must lie in [0, 1)")
        self._check_layers()
        if self.num_buckets < 4 or self.num_buckets % 2:
            raise ValueError(f"model.num_buckets is {self.num_buckets}: it must be an even number of at least 4")
        if self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"model.max_distance is {self.max_distance}: it must exceed half of num_buckets ({self.num_buckets})"
            )
        self._check_choices()

    def _check_layers(self) -> None:
        for name, absent in (("num_encoder_layers", DECODER_ONLY), ("num_decoder_layers", ENCODER_ONLY)):
            value = getattr(self, name)
            if self.architecture in absent and value != 0:
                raise ValueError(f"model.{name} is {value}: {self.architecture} has no such stack, give 0")
            if self.architecture not in absent and value < 1:
                raise ValueError(
                    f"model.{name} is {value}: it must be at least 1 in {self.architecture}; "
                    f"size {self.size!r} may belong to another architecture"
                )
        if not 0 <= self.num_attention_layers <= self.num_encoder_layers:
            raise ValueError(
                f"model.num_attention_layers is {self.num_attention_layers}: "
                f"it must lie between 0 and num_encoder_layers ({self.num_encoder_layers})"
            )

    def _check_choices(self) -> None:
        for name, choices in (
            ("architecture", Architecture),
            ("mixing", MixingName),
            ("attention_layout", AttentionLayout),
            ("norm", NormKind),
            ("norm_position", NormPosition),
            ("feed_forward", FeedForwardKind),
            ("position", PositionKind),
            ("encoder_positions", EncoderPositions),
            ("fourier_norm", FourierNorm),
            ("fourier_backend", FourierBackend),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"model.{name} is {getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}")
        unknown = [head for head in self.heads if head not in get_args(HeadName)]
        if unknown or len(set(self.heads)) != len(self.heads):
            raise ValueError(f"model.heads is {list(self.heads)}: choose from {', '.join(get_args(HeadName))}, each once")
        if self.architecture in BLOCKS and self.inner_dim != self.d_model:
            raise ValueError(
                f"model.num_heads {self.num_heads} x d_kv {self.d_kv} is {self.inner_dim}: "
                f"in {self.architecture} it must equal d_model ({self.d_model})"
            )
        if self.position == "rope" and self.d_kv % 2:
            raise ValueError(f"model.d_kv is {self.d_kv}: rotary positions turn pairs of features, give an even number")
        if self.encoder_block == "fnet" and self.architecture != "fnet_t5":
            raise ValueError(f"model.encoder_block is 'fnet': only fnet_t5 takes it, not {self.architecture}")
        self._check_encoder_positions()

    def _check_encoder_positions(self) -> None:
        if self.encoder_positions == "default":
            return
        given = f"model.encoder_positions is {self.encoder_positions!r}"
        if self.architecture not in ("fnet_t5", "t5"):
            raise ValueError(f"{given}: only fnet_t5 and t5 take it, {self.architecture} has the positions of its own block")
        if self.encoder_block == "fnet":
            raise ValueError(f"{given}: encoder_block 'fnet' has learnt positions already, leave encoder_positions out")

    @property
    def inner_dim(self) -> int:
        """Width of all heads together: may differ from d_model (T5-3B)."""
        return self.num_heads * self.d_kv

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to a multiple of `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def shape(self) -> str:
        """Layers x width and heads, for tables."""
        return shape_of(vars(self))

    @property
    def is_decoder_only(self) -> bool:
        return self.architecture in DECODER_ONLY

    @property
    def is_encoder_only(self) -> bool:
        return self.architecture in ENCODER_ONLY

    @property
    def adds_positions(self) -> bool:
        """Whether `position` adds learnt vectors to the input of every stack."""
        return self.position == "learned"

    @property
    def decoder_block_config(self) -> BlockConfig:
        own = {name: getattr(self, name) for name in BlockConfig.__dataclass_fields__}
        return replace(BlockConfig(**own), type_vocab_size=0, project_input=False)

    @property
    def encoder_block_config(self) -> BlockConfig:
        own = BlockConfig(**{name: getattr(self, name) for name in BlockConfig.__dataclass_fields__})
        if self.encoder_block == "fnet":
            fnet = {name: value for name, value in BLOCKS["fnet"].items() if name in BlockConfig.__dataclass_fields__}
            own = replace(own, **fnet, adds_positions=True)
        if self.encoder_positions == "learned":
            own = replace(own, adds_positions=True)
        if self.encoder_positions == "learned_only":
            own = replace(own, position="learned", adds_positions=True)
        if self.encoder_positions == "none":
            own = replace(own, position="none", adds_positions=False)
        return replace(own, d_ff=self.encoder_d_ff or self.d_ff)

    @property
    def has_inner_dropout(self) -> bool:
        """Whether dropout also applies inside the feed-forward and after final norms: in T5, not in BERT, FNet and GPT-2."""
        return self.architecture not in BLOCKS

    def std(self, by_fan_in: float, *, residual: bool = False) -> float:
        """Standard deviation of an initial weight: `init_std`, or `by_fan_in` (T5's rule) if that is 0.

        `residual` marks the matrices that write into the residual stream: GPT-2 divides theirs by the square root of their
        number.
        """
        if self.init_std and residual and self.architecture == "gpt2":
            return self.init_std / math.sqrt(2 * self.num_decoder_layers)
        return self.init_std or by_fan_in

    def encoder_layer_attends(self, layer: int) -> bool:
        """Whether encoder layer `layer` mixes tokens by attention (FNet's layout rules) or by `mixing`."""
        if self.mixing == "attention":
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

    @property
    def encoder_has_bias_table(self) -> bool:
        return self.encoder_has_attention and self.encoder_block_config.position == "relative"

    @property
    def decoder_has_bias_table(self) -> bool:
        attends = self.num_decoder_layers > 0 and self.decoder_mixing == "attention"
        return attends and self.decoder_block_config.position == "relative"


def architectures() -> tuple[str, ...]:
    return get_args(Architecture)
