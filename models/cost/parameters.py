"""Parameters of each piece in closed form, by canonical name; a tied piece has none of its own.

D model width, A width of all heads together, F feed-forward width, V padded vocabulary, L max_length.
"""

from __future__ import annotations

from torch import Tensor

from models.config import BlockConfig, ModelConfig


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Canonical name of every piece that owns parameters → number of its parameters."""
    d, encoder, decoder = config.d_model, config.encoder_block_config, config.decoder_block_config
    tables = config.encoder_has_bias_table + config.decoder_has_bias_table
    counts = {"embedding": config.padded_vocab_size * d, "relative_bias": tables * config.num_buckets * config.num_heads}
    if not config.is_decoder_only:
        counts["encoder.input"] = _stack_input(config, encoder)
        for layer in range(config.num_encoder_layers):
            norms = 2 * _norm(encoder, d)
            counts[f"encoder.layers.{layer}"] = norms + _mixing(config, layer) + _feed_forward(config, encoder)
        counts["encoder.final_norm"] = _norm(encoder, d) if encoder.pre_norm else 0
    if not config.is_encoder_only:
        counts["decoder.input"] = _stack_input(config, decoder)
        own = _attention(config, decoder) if config.decoder_mixing == "attention" else 0
        cross = 0 if config.is_decoder_only else _attention(config, decoder) + _norm(decoder, d)
        for layer in range(config.num_decoder_layers):
            counts[f"decoder.layers.{layer}"] = 2 * _norm(decoder, d) + own + cross + _feed_forward(config, decoder)
        counts["decoder.final_norm"] = _norm(decoder, d) if decoder.pre_norm else 0
    if config.is_encoder_only:
        counts["heads"] = _heads(config)
    if not config.tie_embeddings and (not config.is_encoder_only or "mlm" in config.heads):
        counts["head"] = config.padded_vocab_size * d
    return {name: count for name, count in counts.items() if count}


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model; tied ones count once."""
    return sum(parameter_counts(config).values())


def _norm(block: BlockConfig, width: int) -> int:
    return width * (2 if block.norm == "layer" else 1)


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _attention(config: ModelConfig, block: BlockConfig) -> int:
    d, a = config.d_model, config.inner_dim
    return 3 * _linear(d, a, block.bias) + _linear(a, d, block.bias)


def _feed_forward(config: ModelConfig, block: BlockConfig) -> int:
    d, f = config.d_model, block.d_ff
    return (2 if block.gated else 1) * _linear(d, f, block.bias) + _linear(f, d, block.bias)


def _mixing(config: ModelConfig, layer: int) -> int:
    if config.encoder_layer_attends(layer):
        return _attention(config, config.encoder_block_config)
    return config.max_length**2 + config.d_model**2 if config.mixing == "linear" else 0


def _stack_input(config: ModelConfig, block: BlockConfig) -> int:
    d = config.d_model
    positions = config.max_length * d if block.adds_positions else 0
    norm = 0 if block.pre_norm else _norm(block, d)
    projection = _linear(d, d, block.bias) if block.project_input else 0
    return positions + block.type_vocab_size * d + norm + projection


def _heads(config: ModelConfig) -> int:
    d, heads = config.d_model, config.heads
    pools = not heads or "order" in heads or "sequence" in heads
    of_head = {
        "mlm": _linear(d, d, True) + _norm(config.encoder_block_config, d) + config.padded_vocab_size,
        "order": _linear(d, 2, True),
        "sequence": _linear(d, config.num_labels, True),
        "token": _linear(d, config.num_token_labels, True),
        "answer": _linear(d, 2, True),
    }
    return (_linear(d, d, True) if pools else 0) + sum(of_head[head] for head in heads)


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to the parameter of this canonical name: it applies to matrices inside layers only."""
    return parameter.ndim == 2 and name.startswith(("encoder.layers.", "decoder.layers."))
