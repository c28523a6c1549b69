"""The complete hybrid: padding, caches, names, FLOPs, sampling."""

import math

import pytest
import torch

from models.architectures.pieces import Inputs, pieces
from models.architectures.seq2seq import Seq2Seq
from models.config import ModelConfig, expand_size
from models.generation.sampling import Sampling, generate, pad_prefixes, sample_token
from models.layers.factory import TorchLayers
from models.layers.initialization import initialize

VOCABULARY = 250


def build(**section: object) -> Seq2Seq:
    model = Seq2Seq(ModelConfig(**expand_size({"size": "nano", "vocab_size": VOCABULARY, **section})))
    initialize(model, seed=0)
    return model.eval()


@pytest.mark.parametrize("section", [{}, {"num_attention_layers": 1}, {"architecture": "t5"}], ids=["fourier", "mixed", "t5"])
def test_logits_do_not_depend_on_padding_or_other_rows(section: dict[str, object]) -> None:
    model = build(**section)
    prefixes = [list(range(3, 20)), list(range(30, 35))]
    together = pad_prefixes(prefixes, encoder_length=24, pad_id=0)
    decoder_ids = torch.randint(3, VOCABULARY, (2, 6))
    logits = model(Inputs(*together, decoder_ids))
    for row, prefix in enumerate(prefixes):
        # Another pad id, because values in padding must not matter.
        alone = pad_prefixes([prefix], encoder_length=24, pad_id=77)
        torch.testing.assert_close(model(Inputs(*alone, decoder_ids[row : row + 1]))[0], logits[row])


def test_decoder_does_not_see_the_future() -> None:
    model = build()
    encoder_ids = torch.randint(3, VOCABULARY, (1, 16))
    decoder_ids = torch.randint(3, VOCABULARY, (1, 10))
    changed = decoder_ids.clone()
    changed[:, 6:] = 5
    mask = torch.ones_like(encoder_ids)
    ours, other = model(Inputs(encoder_ids, mask, decoder_ids)), model(Inputs(encoder_ids, mask, changed))
    torch.testing.assert_close(ours[:, :6], other[:, :6], rtol=0, atol=0)
    assert not torch.allclose(ours[:, 6:], other[:, 6:])


def test_decoding_with_caches_equals_full_passes() -> None:
    model = build(num_attention_layers=1)
    encoder_ids = torch.randint(3, VOCABULARY, (2, 16))
    mask = torch.ones_like(encoder_ids)
    mask[1, 9:] = 0
    decoder_ids = torch.randint(3, VOCABULARY, (2, 9))
    whole = model(Inputs(encoder_ids, mask, decoder_ids))
    encoded = model.encode(encoder_ids, mask)
    steps = [model.decode(part, encoded) for part in decoder_ids.split([1, 3, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_greedy_generation_equals_the_argmax_of_full_passes() -> None:
    model = build()
    encoder_ids, mask = pad_prefixes([list(range(3, 15)), [40, 41]], encoder_length=16, pad_id=0)
    written = torch.stack(
        list(generate(model, encoder_ids, mask, start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=8))), dim=1
    )
    decoder_ids = torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(8):
        logits = model(Inputs(encoder_ids, mask, decoder_ids))[:, -1, :VOCABULARY]
        decoder_ids = torch.cat([decoder_ids, logits.argmax(-1, keepdim=True)], dim=1)
    for row in range(2):
        expected = decoder_ids[row, 1:].tolist()
        if 1 in expected:
            expected = expected[: expected.index(1) + 1]
        assert written[row, : len(expected)].tolist() == expected


def test_top_k_and_top_p_keep_exactly_the_likely_tokens() -> None:
    probabilities = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]])
    generator = torch.Generator().manual_seed(0)

    def drawn(sampling: Sampling) -> set[int]:
        return {int(sample_token(probabilities.log(), sampling, generator)) for _ in range(400)}

    assert drawn(Sampling(temperature=1.0, top_k=2)) == {0, 1}
    assert drawn(Sampling(temperature=1.0, top_p=0.75)) == {0, 1, 2}
    assert drawn(Sampling(temperature=1.0)) == {0, 1, 2, 3, 4}
    assert drawn(Sampling()) == {0}


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "max_new_tokens"])
def test_impossible_sampling_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: -1})


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_names_start_with_the_names_of_their_pieces(tied: bool) -> None:
    model = build(tie_embeddings=tied)
    factory = TorchLayers()
    expected = {
        f"{piece.name}.{name}"
        for piece in pieces(model.config, factory)
        if piece.tied_to is None
        for name, _ in piece.build(factory).named_parameters()
    }
    assert set(model.state_dict()) == expected
    assert "encoder.layers.1.feed_forward.down.weight" in expected
    assert ("head.projection.weight" in expected) is not tied


def test_initial_logits_are_nearly_uniform() -> None:
    model = build()
    ids = torch.randint(3, VOCABULARY, (8, 32))
    logits = model(Inputs(ids, torch.ones_like(ids), ids[:, :16]))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(3, VOCABULARY, (8 * 16,)))
    assert loss < math.log(model.config.padded_vocab_size) + 1.5
