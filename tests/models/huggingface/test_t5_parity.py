"""Attention, bias, norms, feed-forward and heads compared with `transformers`' T5, with random weights mapped into it."""

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from models.architectures.pieces import Inputs
from models.architectures.seq2seq import Seq2Seq
from models.config import ModelConfig, expand_size
from models.layers.initialization import initialize
from models.layers.position import relative_bucket

VOCABULARY = 250


def our_model(feed_forward: str, tied: bool) -> Seq2Seq:
    config = ModelConfig(
        **expand_size(
            {
                "size": "nano",
                "architecture": "t5",
                "vocab_size": VOCABULARY,
                "feed_forward": feed_forward,
                "tie_embeddings": tied,
            }
        )
    )
    model = Seq2Seq(config)
    initialize(model, seed=1)
    for module in model.modules():  # norms start at 1, which would hide swapped norms
        if module.__class__.__name__ == "RMSNorm":
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def huggingface_name(name: str, gated: bool) -> str:
    """The name in transformers' T5 of our canonical parameter name."""
    fixed = {
        "embedding.tokens.weight": "shared.weight",
        "relative_bias.encoder": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "relative_bias.decoder": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.final_norm.weight": "encoder.final_layer_norm.weight",
        "decoder.final_norm.weight": "decoder.final_layer_norm.weight",
        "head.projection.weight": "lm_head.weight",
    }
    if name in fixed:
        return fixed[name]
    stack, _, layer, *rest = name.split(".")
    feed_forward = 1 if stack == "encoder" else 2
    sublayers = {
        "mixing_norm": "layer.0.layer_norm",
        "mixing.attention": "layer.0.SelfAttention",
        "self_attention_norm": "layer.0.layer_norm",
        "self_attention": "layer.0.SelfAttention",
        "cross_attention_norm": "layer.1.layer_norm",
        "cross_attention": "layer.1.EncDecAttention",
        "feed_forward_norm": f"layer.{feed_forward}.layer_norm",
        "feed_forward": f"layer.{feed_forward}.DenseReluDense",
    }
    matrices = {
        "query": "q",
        "key": "k",
        "value": "v",
        "output": "o",
        "gate": "wi_0",
        "up": "wi_1" if gated else "wi",
        "down": "wo",
    }
    parts = [matrices.get(part, part) for part in rest]
    ours = ".".join(rest)
    prefix = max((key for key in sublayers if ours.startswith(key + ".")), key=len)
    return f"{stack}.block.{layer}.{sublayers[prefix]}." + ".".join(parts[prefix.count(".") + 1 :])


def their_model(model: Seq2Seq, gated: bool, tied: bool) -> nn.Module:
    config = model.config
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.padded_vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_encoder_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu" if gated else "relu",
            tie_word_embeddings=tied,
            dropout_rate=0.0,
            attn_implementation="eager",
        )
    ).eval()
    if not tied:
        # transformers 5 ties the head for any configuration; the flag only controls the scaling
        theirs.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
    mapped = {huggingface_name(name, gated): tensor for name, tensor in model.state_dict().items()}
    mapped["encoder.embed_tokens.weight"] = mapped["decoder.embed_tokens.weight"] = mapped["shared.weight"]
    if tied:
        mapped["lm_head.weight"] = mapped["shared.weight"]
    theirs.load_state_dict(mapped)
    return theirs


@pytest.mark.parametrize(("feed_forward", "tied"), [("relu", True), ("gated_gelu", False)], ids=["v1.0", "v1.1"])
def test_logits_and_gradients_equal(feed_forward: str, tied: bool) -> None:
    gated = feed_forward == "gated_gelu"
    ours = our_model(feed_forward, tied)
    theirs = their_model(ours, gated, tied)
    generator = torch.Generator().manual_seed(0)
    encoder_ids = torch.randint(3, VOCABULARY, (3, 37), generator=generator)
    decoder_ids = torch.randint(3, VOCABULARY, (3, 21), generator=generator)
    mask = torch.ones_like(encoder_ids)
    mask[1, 20:] = 0
    logits = ours(Inputs(encoder_ids, mask, decoder_ids))
    expected = theirs(input_ids=encoder_ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    assert relative_difference(logits, expected) < 1e-5

    weights = torch.randn(logits.shape, generator=generator)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert relative_difference(parameter.grad, their_gradients[huggingface_name(name, gated)]) < 1e-4, name


def test_buckets_of_all_distances_equal_transformers() -> None:
    distance = torch.arange(-600, 601)
    for bidirectional in (True, False):
        expected = T5Attention._relative_position_bucket(distance, bidirectional, num_buckets=32, max_distance=128)
        ours = relative_bucket(distance, bidirectional=bidirectional, num_buckets=32, max_distance=128)
        assert torch.equal(ours, expected)


@torch.no_grad()
def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
