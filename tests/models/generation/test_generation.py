"""Decoding with caches compared with full passes, and with `transformers.generate` on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from models.architectures.build import build_model
from models.architectures.decoder_only import DecoderOnly
from models.architectures.pieces import Inputs, TextInputs
from models.architectures.seq2seq import Seq2Seq
from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig, expand_size
from models.generation.beam_search import beam_search
from models.generation.sampling import Sampling, generate, pad_prefixes, pad_prompts
from models.huggingface import entries, their_config
from models.huggingface.mapping import to_theirs
from models.layers.initialization import initialize
from pipeline.huggingface.folder import write_folder

VOCABULARY, STEPS = 120, 12
PROMPTS = [list(range(3, 20)), [40, 41, 42], [7] * 9]

SECTIONS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "hybrid, mixed": {"num_attention_layers": 1},
    "hybrid, rope": {"position": "rope"},
    "hybrid, learnt positions": {"position": "learned"},
    "hybrid, causal fourier decoder": {"decoder_mixing": "causal_fourier", "max_length": 48},
    "t5": {"architecture": "t5", "feed_forward": "relu", "tie_embeddings": False},
    "gpt2": {"architecture": "gpt2", "max_length": 64},
    "gpt2, rope": {"architecture": "gpt2", "position": "rope", "scale_scores": True},
    "prefix decoder": {"architecture": "prefix_decoder"},
}


def build(section: dict[str, Any]) -> SingleProcessModel:
    model = build_model(ModelConfig(**expand_size({"size": "nano", "vocab_size": VOCABULARY, **section})))
    initialize(model, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # GPT-2's small initial weights would always give the same token
            if parameter.ndim == 2 and parameter.std() < 0.03:
                parameter.mul_(8)
    return model.eval()


def padded(model: SingleProcessModel, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    if isinstance(model, Seq2Seq):
        return pad_prefixes(prompts, encoder_length=24, pad_id=0)
    return pad_prompts(prompts, 64, pad_id=0, prefix=model.config.architecture == "prefix_decoder")


def written(tokens: Iterator[Tensor], eos_id: int = 1) -> list[list[int]]:
    rows = torch.stack(list(tokens), dim=1).tolist()
    return [row[: row.index(eos_id) + 1] if eos_id in row else row for row in rows]


@torch.no_grad()
def without_cache(model: SingleProcessModel, prompt: list[int]) -> list[int]:
    """Decode one row with a full pass for each token."""
    result: list[int] = []
    while len(result) < STEPS and 1 not in result:
        if isinstance(model, Seq2Seq):
            logits = model(Inputs(*padded(model, [prompt]), torch.tensor([[0, *result]])))
        else:
            mask = torch.ones(1, len(prompt) + len(result), dtype=torch.int64)
            if model.config.architecture == "prefix_decoder":
                mask[:, : len(prompt)] = 2
            logits = model(TextInputs(torch.tensor([prompt + result]), mask))
        result.append(int(logits[0, -1, :VOCABULARY].argmax()))
    return result


@pytest.mark.parametrize("name", SECTIONS)
def test_a_batch_with_caches_equals_single_rows_without_caches(name: str) -> None:
    model = build(SECTIONS[name])
    found = written(generate(model, *padded(model, PROMPTS), start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=STEPS)))
    assert found == [without_cache(model, prompt) for prompt in PROMPTS]
    assert len({tuple(row) for row in found}) > 1  # the prompts change the texts


def test_attention_is_bidirectional_only_within_the_prefix() -> None:
    model = build(SECTIONS["prefix decoder"])
    ids = torch.randint(3, VOCABULARY, (1, 12))
    mask = torch.tensor([[2] * 5 + [1] * 7])
    logits = model(TextInputs(ids, mask))
    for changed, moved in ((4, 0), (8, 8)):  # a change at position `changed` changes the logits from position `moved`
        other = ids.clone()
        other[0, changed] = (ids[0, changed] + 1) % VOCABULARY
        differs = (model(TextInputs(other, mask)) != logits).any(-1)[0]
        assert not differs[:moved].any()
        assert differs[moved:].all()


def test_causal_fourier_in_a_decoder_only_model_refuses_padded_prompts() -> None:
    model = build({"architecture": "gpt2", "decoder_mixing": "causal_fourier", "max_length": 64})
    same = [[5, 6, 7], [8, 9, 10]]
    found = written(generate(model, *padded(model, same), start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=STEPS)))
    assert found == [without_cache(model, prompt) for prompt in same]
    with pytest.raises(ValueError, match=r"model\.decoder_mixing"):
        next(generate(model, *padded(model, PROMPTS), start_id=0, eos_id=1, sampling=Sampling()))


# --- against transformers ---


@pytest.fixture(scope="module", params=["t5", "gpt2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SingleProcessModel, nn.Module]:
    """The same weights in both libraries."""
    model = build(SECTIONS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    write_folder(folder, their_config(model.config), to_theirs(entries(model.config), model.state_dict(), model.config))
    kind = transformers.T5ForConditionalGeneration if request.param == "t5" else transformers.GPT2LMHeadModel
    return model, kind.from_pretrained(folder).eval()


def theirs(model: nn.Module, ids: Tensor, mask: Tensor, eos: int | list[int], **options: Any) -> list[list[int]]:
    config = transformers.GenerationConfig(
        max_new_tokens=STEPS, pad_token_id=0, eos_token_id=eos, decoder_start_token_id=0, bos_token_id=None, **options
    )
    rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    stops = [eos] if isinstance(eos, int) else eos
    cut = []
    for row in rows[:, start:].tolist():
        ends = [index for index, token in enumerate(row) if token in stops]
        cut.append(row[: ends[0] + 1] if ends else row)
    return cut


def test_greedy_equals_transformers(pair: tuple[SingleProcessModel, nn.Module]) -> None:
    ours, other = pair
    ids, mask = padded(ours, PROMPTS)
    found = written(generate(ours, ids, mask, start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=STEPS)))
    assert found == theirs(other, ids, mask, 1, do_sample=False)


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.5, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_beams_equal_transformers(
    pair: tuple[SingleProcessModel, nn.Module], num_beams: int, length_penalty: float, early_stopping: bool
) -> None:
    ours, other = pair
    ids, mask = padded(ours, PROMPTS)
    sampling = Sampling(max_new_tokens=STEPS, num_beams=num_beams, length_penalty=length_penalty)
    stops = [1, 17, 60, 99]  # several, so that some texts end early
    found = beam_search(ours, ids, mask, start_id=0, eos_id=stops, sampling=sampling, early_stopping=early_stopping)
    expected = theirs(
        other,
        ids,
        mask,
        stops,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    assert [beam.tokens for row in found for beam in row] == expected


@torch.no_grad()
def test_beam_search_finds_the_likeliest_text_of_a_tiny_space() -> None:
    """With as many beams as there are texts it is exhaustive search."""
    model = build({"vocab_size": 5})
    assert isinstance(model, Seq2Seq)
    ids, mask = pad_prefixes([[2, 3, 4]], encoder_length=8, pad_id=0)
    sampling = Sampling(max_new_tokens=2, num_beams=25, length_penalty=0.0)
    best = beam_search(model, ids, mask, start_id=0, eos_id=1, sampling=sampling)[0][0]
    first = model(Inputs(ids, mask, torch.tensor([[0]])))[0, -1, :5].log_softmax(-1)
    scores = {(1,): float(first[1])}
    for token in (0, 2, 3, 4):
        second = model(Inputs(ids, mask, torch.tensor([[0, token]])))[0, -1, :5].log_softmax(-1)
        scores |= {(token, other): float(first[token] + second[other]) for other in range(5)}
    likeliest = max(scores, key=lambda text: scores[text])
    assert tuple(best.tokens) == likeliest
    assert best.score == pytest.approx(scores[likeliest], abs=1e-5)


def test_every_stop_token_stops() -> None:
    model = build({})
    ids, mask = padded(model, PROMPTS)
    sampling = Sampling(max_new_tokens=40, temperature=1.5, seed=1)
    stops = [1, *range(40, 80)]
    rows = torch.stack(list(generate(model, ids, mask, start_id=0, eos_id=stops, sampling=sampling)), 1).tolist()
    for row in rows:
        first = next(index for index, token in enumerate(row) if token in stops)
        assert set(row[first + 1 :]) <= {1}


def test_beams_in_a_stream_are_refused() -> None:
    model = build({})
    with pytest.raises(ValueError, match="num_beams is 2"):
        next(generate(model, *padded(model, PROMPTS), start_id=0, eos_id=1, sampling=Sampling(num_beams=2)))
    with pytest.raises(ValueError, match="temperature"):
        Sampling(num_beams=2, temperature=1.0)


def test_a_too_long_text_names_the_field(tmp_path: Path) -> None:
    model = build({"architecture": "gpt2", "max_length": 20})
    assert isinstance(model, DecoderOnly)
    with pytest.raises(ValueError, match=r"21 tokens, model\.max_length is 20"):
        list(generate(model, *padded(model, PROMPTS), start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=40)))
