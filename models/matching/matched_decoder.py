"""The GPT-2 baseline: the decoder-only model that ladders and benchmarks compare with a T5. This is its only rule.

Shape: the proportions of the smallest GPT-2 (12 layers of 768 in 12 heads; Radford et al. 2019), that is as many layers as
heads, and heads of 64. Beside a T5 whose heads are narrower the heads are as narrow, so that tiny models have a shape too.
Size: as many parameters as the T5, or as many FLOPs of a training row. The number of layers is the one that comes nearest with
GPT-2's feed-forward of 4 widths; then the feed-forward takes up the rest, in multiples of 64 and between 2 and 8 widths. A tiny
model may still miss its target, because the vocabulary is most of it: callers that need equality check it.

A T5 runs each token through one of its two stacks, a decoder-only model through all of its layers: at equal parameters it
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

HEAD_WIDTH = 64
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
    target, head_width = cost(t5), min(t5.d_kv, HEAD_WIDTH)

    def of_layers(layers: int) -> ModelConfig:
        d_model = head_width * layers
        section = {"architecture": "gpt2", "d_model": d_model, "d_ff": 4 * d_model, "d_kv": head_width, "num_heads": layers}
        section |= {"num_decoder_layers": layers, "max_length": max_length}
        return ModelConfig(**expand_size(section), vocab_size=t5.vocab_size, vocab_multiple=t5.vocab_multiple)

    shape = min(map(of_layers, range(1, MAX_LAYERS + 1)), key=lambda config: abs(cost(config) - target))
    d_ff = nearest(lambda count: replace(shape, d_ff=count * MULTIPLE), cost, target).d_ff
    smallest = _round_up(MIN_FEED_FORWARD * shape.d_model)
    return replace(shape, d_ff=min(max(d_ff, smallest), _round_up(MAX_FEED_FORWARD * shape.d_model)))


def _round_up(width: int) -> int:
    return -(-width // MULTIPLE) * MULTIPLE
