"""The GPT-2 baseline: the decoder-only model that ladders and benchmarks compare with a T5. This is its only rule.

Shape: as many layers as heads, and heads as wide as the T5's; so the width is d_kv for each layer. With heads of 64 that is
GPT-2 (12 layers of 768 in 12 heads; Radford et al. 2019), with heads of 128 GPT-3 6.7B and 13B (32 layers of 4096, 40 of
5120; Brown et al. 2020, table 2.1). Size: as many parameters as the T5, or as many FLOPs of a training row. The number of
layers comes nearest to that with GPT-2's feed-forward of 4 widths; then the feed-forward takes up the rest, in multiples of 64
and between 2 and 8 widths. A tiny vocabulary-bound model may stay apart from its target: callers that need equality check it.

A T5 runs each token through one of its two stacks, a decoder alone runs it through all of its layers: at equal parameters it
computes about twice as much, at equal compute it has about half of the parameters (Raffel et al. 2020, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from models.architectures.pieces import forward_flops
from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers
from models.matching.compute_matched import MULTIPLE, check_t5, nearest

MAX_LAYERS = 96
MIN_FEED_FORWARD, MAX_FEED_FORWARD = 2, 8
"""In widths of the model."""


def gpt2_of_equal_parameters(t5: ModelConfig, max_length: int) -> ModelConfig:
    """`max_length`: tokens that the GPT-2 has positions for; they are parameters and count."""
    return _nearest_gpt2(t5, max_length, num_parameters)


def gpt2_of_equal_flops(t5: ModelConfig, lengths: Lengths, max_length: int) -> ModelConfig:
    """FLOPs of one training row: the T5 encodes and decodes `lengths`, the GPT-2 reads both as one text, each to its logits."""
    return _nearest_gpt2(t5, max_length, lambda config: forward_flops(config, TorchLayers(), lengths))


def _nearest_gpt2(t5: ModelConfig, max_length: int, cost: Callable[[ModelConfig], float]) -> ModelConfig:
    check_t5(t5)
    target = cost(t5)

    def of_layers(layers: int) -> ModelConfig:
        d_model = t5.d_kv * layers
        section = {"architecture": "gpt2", "d_model": d_model, "d_ff": 4 * d_model, "d_kv": t5.d_kv, "num_heads": layers}
        section |= {"num_decoder_layers": layers, "max_length": max_length}
        return ModelConfig(**expand_size(section), vocab_size=t5.vocab_size, vocab_multiple=t5.vocab_multiple)

    shape = min(map(of_layers, range(1, MAX_LAYERS + 1)), key=lambda config: abs(cost(config) - target))
    d_ff = nearest(lambda count: replace(shape, d_ff=count * MULTIPLE), cost, target).d_ff
    smallest = _round_up(MIN_FEED_FORWARD * shape.d_model)
    return replace(shape, d_ff=min(max(d_ff, smallest), _round_up(MAX_FEED_FORWARD * shape.d_model)))


def _round_up(width: int) -> int:
    return -(-width // MULTIPLE) * MULTIPLE
