"""GPT-2s that are fair to a T5: of GPT-2's own proportions, with as many parameters or as many FLOPs of a training row.

A T5 runs each token through one of its two stacks, a decoder alone through all that it has: at equal parameters it computes
about twice as much, at equal compute it has about half of the parameters (Raffel et al. 2020, section 3.2).

Proportions are those of the smallest GPT-2 (12 layers of 768 in heads of 64; Radford et al. 2019): a width of 64 for each
layer. What a whole layer cannot match the feed-forward does, 4 widths at first, in multiples of 64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from models.architectures.pieces import forward_flops
from models.config import ModelConfig, expand_size
from models.cost.flops import Lengths
from models.cost.parameters import num_parameters
from models.layers.factory import TorchLayers
from models.matching.compute_matched import MULTIPLE, nearest

HEAD_WIDTH = 64
MOST_LAYERS = 96


def gpt2_of_equal_parameters(t5: ModelConfig, max_length: int) -> ModelConfig:
    """`max_length`: tokens that the GPT-2 has positions for; they are parameters and count."""
    return _nearest_gpt2(t5, max_length, num_parameters)


def gpt2_of_equal_flops(t5: ModelConfig, lengths: Lengths, max_length: int) -> ModelConfig:
    """FLOPs of one training row: the T5 encodes and decodes `lengths`, the GPT-2 reads both as one text, each to its logits."""
    return _nearest_gpt2(t5, max_length, lambda config: forward_flops(config, TorchLayers(), lengths))


def _nearest_gpt2(t5: ModelConfig, max_length: int, cost: Callable[[ModelConfig], float]) -> ModelConfig:
    if t5.architecture != "t5":
        raise ValueError(f"model.architecture is {t5.architecture!r}: variants are matched to a t5")
    if not t5.vocab_size:
        raise ValueError("model.vocab_size is 0: give the tokenizer's, the embedding counts too")
    target = cost(t5)

    def of_layers(layers: int) -> ModelConfig:
        d_model = HEAD_WIDTH * layers
        section = {"architecture": "gpt2", "d_model": d_model, "d_ff": 4 * d_model, "d_kv": HEAD_WIDTH, "num_heads": layers}
        section |= {"num_decoder_layers": layers, "max_length": max_length}
        return ModelConfig(**expand_size(section), vocab_size=t5.vocab_size, vocab_multiple=t5.vocab_multiple)

    shape = min(map(of_layers, range(1, MOST_LAYERS + 1)), key=lambda config: abs(cost(config) - target))
    return nearest(lambda count: replace(shape, d_ff=count * MULTIPLE), cost, target)
