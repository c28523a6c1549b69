"""`model.encoder_positions`: what an encoder makes of a permuted input, and T5 with positions compared with `transformers`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from models.architectures.pieces import Inputs, pieces, sent_tensors
from models.architectures.seq2seq import Seq2Seq
from models.config import ModelConfig, expand_size
from models.generation.sampling import Sampling, generate, pad_prefixes
from models.huggingface import entries, their_config
from models.huggingface.mapping import to_theirs
from models.layers.factory import TorchLayers
from models.layers.initialization import initialize

VOCABULARY, N, M = 256, 24, 7
TABLE = "encoder.input.positions.weight"
FF_ONLY, FNET_T5, T5 = {"mixing": "identity"}, {}, {"architecture": "t5"}


def build(**section: Any) -> Seq2Seq:
    """Vectors of size 1 at the positions: as large as those of tokens, so that their effect is far above rounding."""
    values = {"size": "nano", "vocab_size": VOCABULARY, "max_length": N, **section}
    model = Seq2Seq(ModelConfig(**expand_size(values)))
    initialize(model, seed=0)
    if model.config.encoder_positions in ("learned", "learned_only"):
        with torch.no_grad():
            model.get_parameter(TABLE).copy_(torch.randn(N, 64, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def encoder_output(model: Seq2Seq, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.encode(ids, torch.ones_like(ids)).state.encoder_hidden


@pytest.mark.parametrize(
    ("section", "permutes"),
    [
        (FF_ONLY, True),
        ({**FF_ONLY, "encoder_positions": "learned"}, False),
        ({**T5, "encoder_positions": "none"}, True),
        (T5, False),
        ({**T5, "encoder_positions": "learned"}, False),
        ({**T5, "encoder_positions": "learned_only"}, False),
        (FNET_T5, False),
        ({"num_attention_layers": 2, "encoder_positions": "none"}, True),
        ({"position": "learned", "mixing": "attention", "encoder_positions": "none"}, True),
        ({"position": "rope", "mixing": "attention", "encoder_positions": "none"}, True),
        ({"position": "none", "mixing": "attention", "encoder_positions": "learned"}, False),
    ],
)
def test_an_encoder_without_positions_permutes_its_output_with_its_input(section: dict[str, Any], permutes: bool) -> None:
    model = build(**section)
    ids = torch.randint(3, VOCABULARY, (2, N))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    expected, found = encoder_output(model, ids)[:, order], encoder_output(model, ids[:, order])
    difference = float((found - expected).abs().max())
    assert difference < 1e-5 if permutes else difference > 0.1


@pytest.mark.parametrize("section", [FF_ONLY, FNET_T5, T5], ids=["ff_only", "fnet_t5", "t5"])
def test_a_table_of_zeros_changes_nothing(section: dict[str, Any]) -> None:
    plain, positions = build(**section), build(**section, encoder_positions="learned")
    weights = {**plain.state_dict(), TABLE: torch.zeros(N, 64)}
    assert weights.keys() == positions.state_dict().keys()
    positions.load_state_dict(weights)
    ids = torch.randint(3, VOCABULARY, (2, N))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    inputs = Inputs(ids, mask, ids[:, :M])
    assert torch.equal(positions(inputs), plain(inputs))


@pytest.mark.parametrize("value", ["learned", "learned_only", "none"])
def test_a_t5_equals_transformers_given_positions_or_without_its_encoders_bias(value: str) -> None:
    """Their encoder takes vectors instead of ids, so the positions are added outside of it; no bias is a bias of zeros."""
    ours = build(**T5, encoder_positions=value, tie_embeddings=False)
    config = ModelConfig(**{**vars(ours.config), "encoder_positions": "default"})
    weights = dict(ours.state_dict())
    table = weights.pop(TABLE, torch.zeros(N, 64))
    weights.setdefault("relative_bias.encoder", torch.zeros(32, 4))
    values = {name: value for name, value in their_config(config).items() if name not in ("model_type", "architectures")}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**values, attn_implementation="eager")).eval()
    theirs.lm_head = torch.nn.Linear(64, VOCABULARY, bias=False)
    theirs.load_state_dict(to_theirs(entries(config), weights, config))
    ids = torch.randint(3, VOCABULARY, (3, N))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    vectors = weights["embedding.tokens.weight"][ids] + table
    with torch.no_grad():
        expected = theirs(inputs_embeds=vectors, attention_mask=mask, decoder_input_ids=ids[:, :M]).logits
        found = ours(Inputs(ids, mask, ids[:, :M]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_positions_are_learnt() -> None:
    model = build(**FF_ONLY, encoder_positions="learned")
    ids = torch.randint(3, VOCABULARY, (2, N - 4))
    model(Inputs(ids, torch.ones_like(ids), ids[:, :M])).square().sum().backward()
    gradient = model.get_parameter(TABLE).grad
    assert gradient is not None
    assert (gradient.abs().sum(1) > 0).tolist() == [True] * (N - 4) + [False] * 4


def test_greedy_generation_equals_the_argmax_of_full_passes() -> None:
    model = build(encoder_positions="learned")
    ids, mask = pad_prefixes([list(range(3, 15)), [40, 41]], encoder_length=16, pad_id=0)
    sampling = Sampling(max_new_tokens=6)
    written = torch.stack(list(generate(model, ids, mask, start_id=0, eos_id=VOCABULARY - 1, sampling=sampling)), dim=1)
    decoded = torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(written.shape[1]):
        decoded = torch.cat([decoded, model(Inputs(ids, mask, decoded))[:, -1].argmax(-1, keepdim=True)], dim=1)
    ended = (decoded[:, 1:] == VOCABULARY - 1).cumsum(1) > 0  # what is written after the end is padding
    assert torch.equal(written[~ended], decoded[:, 1:][~ended])


@pytest.mark.parametrize("value", ["learned", "none"])
def test_a_stage_sends_one_bias_table_less_without_the_encoders_bias(value: str) -> None:
    """The stage boundary of a pipeline, in one process: only what is sent crosses it."""
    model = build(**T5, encoder_positions=value)
    ids = torch.randint(3, VOCABULARY, (2, N))
    inputs = Inputs(ids, torch.ones_like(ids), ids[:, :M])
    state: Any = inputs
    for piece in pieces(model.config, TorchLayers()):
        if piece.starts_stage:
            sent = sent_tensors(state)
            state = piece.reads(*sent)
            assert len(state.bias_tables) == (2 if value == "learned" else 1)
        state = piece.run(model.get_submodule(piece.tied_to or piece.name), state)
    torch.testing.assert_close(state, model(inputs))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"encoder_positions": "sinus"},
            "model.encoder_positions is 'sinus': choose one of default, learned, learned_only, n",
        ),
        ({"architecture": "gpt2", "encoder_positions": "learned"}, "only fnet_t5 and t5 take it, gpt2 has"),
        ({"architecture": "bert", "encoder_positions": "none"}, "only fnet_t5 and t5 take it, bert has"),
        ({"encoder_block": "fnet", "encoder_positions": "none"}, "encoder_block 'fnet' has learnt positions already"),
    ],
)
def test_impossible_choices_name_the_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**expand_size({"size": "nano", **section}))


def test_a_longer_input_than_the_table_is_refused() -> None:
    model = build(encoder_positions="learned")
    ids = torch.randint(3, VOCABULARY, (1, N + 1))
    with pytest.raises(ValueError, match=rf"the input has {N + 1} tokens, model.max_length is {N}"):
        model(Inputs(ids, torch.ones_like(ids), ids[:, :M]))


@pytest.mark.parametrize("section", [FNET_T5, T5], ids=["fnet_t5", "t5"])
@pytest.mark.parametrize("value", ["learned", "none"])
def test_exports_refuse_the_key(section: dict[str, Any], value: str) -> None:
    config = build(**section, encoder_positions=value).config
    for function in (entries, their_config):
        with pytest.raises(ValueError, match=rf"model\.encoder_positions is '{value}': the Hugging Face class of .* 'default'"):
            function(config)


def test_the_exported_configuration_has_no_new_key() -> None:
    assert "encoder_positions" not in their_config(build().config)["fnet_t5"]
