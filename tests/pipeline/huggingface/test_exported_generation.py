"""`generate` of the exported hybrid in its modes, and its caches: the properties that transformers' generation tests check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from tests.pipeline.huggingface.conftest import HYBRIDS, Load

Batch = dict[str, Tensor]


@pytest.fixture
def model(folder: Path, load: Load) -> Any:
    return load(folder)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_token_by_token_with_a_cache_equals_one_pass(folder: Path, load: Load, batch: Batch, kind: str, kernel: str) -> None:
    model = load(folder, attn_implementation=kernel)
    ids = batch["decoder_input_ids"]
    with torch.no_grad():
        expected = model(**batch).logits
        encoded = model.get_encoder()(batch["input_ids"])
        cache = None
        if kind == "static":
            lengths = (12, encoded[0].shape[1])
            cache = EncoderDecoderCache(*(StaticCache(config=model.config, max_cache_len=length) for length in lengths))
        found = []
        for piece in (ids[:, :3], ids[:, 3:4], ids[:, 4:]):
            step = model(encoder_outputs=encoded, decoder_input_ids=piece, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            found.append(step.logits)
        close(torch.cat(found, 1), expected)
    assert int(cache.get_seq_length()) == 7
    keys = cache.self_attention_cache.layers[0].keys
    assert tuple(keys.shape) == (3, 4, 12 if kind == "static" else 7, 16)
    assert model(**batch, use_cache=False).past_key_values is None
    assert model(**batch).past_key_values is not None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
        {"do_sample": True, "top_k": 20, "temperature": 1.5, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 2, "top_p": 0.9},
        {"repetition_penalty": 1.5, "bad_words_ids": [[5], [6]], "min_new_tokens": 6},
    ],
    ids=["greedy", "beams", "beams with penalties", "samples", "sampled beams", "processors"],
)
def test_every_mode_gives_the_same_tokens_with_every_cache(model: Any, batch: Batch, options: dict[str, Any]) -> None:
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 5:] = 0

    def generate(**extra: Any) -> Tensor:
        torch.manual_seed(0)
        return model.generate(
            batch["input_ids"], attention_mask=mask, **{"do_sample": False, **options}, max_new_tokens=8, **extra
        )

    expected = generate(use_cache=False)
    assert expected.shape[0] == 3 * options.get("num_return_sequences", 1)
    assert bool((expected[:, 0] == model.config.decoder_start_token_id).all())
    offloaded = ["offloaded"] if torch.cuda.is_available() else []  # transformers needs CUDA streams for it
    for kind in (None, "static", *offloaded):
        assert torch.equal(generate(cache_implementation=kind), expected), kind


def test_drafts_by_prompt_lookup_or_by_another_model_change_no_token(model: Any, folder: Path, load: Load) -> None:
    ids = torch.randint(3, 300, (1, 9))
    expected = model.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False, prompt_lookup_num_tokens=2), expected)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False, assistant_model=load(folder)), expected)


def test_generate_returns_scores_attentions_and_hidden_states(tied_folder: Path, load: Load, batch: Batch) -> None:
    model = load(tied_folder, attn_implementation="eager")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True}
    found = model.generate(
        batch["input_ids"],
        **options,
        do_sample=False,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert len(found.scores) == len(found.logits) == len(found.decoder_hidden_states) == 4
    assert [tuple(step[0].shape) for step in found.decoder_attentions] == [(3, 4, 1, 1 + step) for step in range(4)]
    assert tuple(found.cross_attentions[0][1].shape) == (3, 4, 1, 9)
    assert tuple(found.encoder_attentions[0].shape) == (3, 4, 9, 9)
    assert len(found.encoder_hidden_states) == 3
    with torch.no_grad():
        whole = model(batch["input_ids"], decoder_input_ids=found.sequences[:, :-1]).logits
    close(torch.stack(found.logits, 1), whole)
    assert torch.equal(found.scores[3].argmax(-1), found.sequences[:, -1])
    beams = model.generate(batch["input_ids"], **options, do_sample=False, num_beams=2, output_scores=True)
    assert beams.sequences_scores.shape == (3,)


def test_generation_goes_on_from_given_decoder_tokens_and_from_a_cache(model: Any, batch: Batch) -> None:
    """With padding on the left of the decoder's tokens, as a batch of beginnings of different lengths needs."""
    ids, source = batch["decoder_input_ids"], batch["input_ids"]
    start = torch.zeros(3, 1, dtype=torch.long)
    begun = torch.cat([start, ids[:, :3]], 1)
    expected = model.generate(source, decoder_input_ids=begun, max_new_tokens=5, do_sample=False)
    assert torch.equal(expected[:, :4], begun)
    padded = torch.cat([start, start, begun], 1)
    mask = torch.cat([torch.zeros(3, 2, dtype=torch.long), torch.ones_like(begun)], 1)
    for extra in ({}, {"cache_implementation": "static"}):
        found = model.generate(
            source, decoder_input_ids=padded, decoder_attention_mask=mask, max_new_tokens=5, do_sample=False, **extra
        )
        assert torch.equal(found[:, 2:], expected), extra
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first = model.generate(source, max_new_tokens=3, min_new_tokens=3, do_sample=False, past_key_values=cache)
    # transformers leaves out the tokens that the cache has if the mask covers all of them; without it T5 too reads them twice
    options = {"decoder_attention_mask": torch.ones_like(first), "past_key_values": cache, "do_sample": False}
    rest = model.generate(source, decoder_input_ids=first, max_new_tokens=3, min_new_tokens=3, **options)
    assert torch.equal(rest, model.generate(source, max_new_tokens=6, min_new_tokens=6, do_sample=False))


def test_options_of_generate_that_the_model_lacks_are_refused(tied_folder: Path, load: Load, batch: Batch) -> None:
    model = load(tied_folder)
    with pytest.raises(ValueError, match="quantized"):
        model.generate(batch["input_ids"], max_new_tokens=2, cache_implementation="quantized")
    with pytest.raises(ValueError, match="headmask"):
        model.generate(batch["input_ids"], max_new_tokens=2, headmask=torch.ones(2))
    with pytest.raises((ValueError, TypeError), match="position_ids"):
        model.generate(batch["input_ids"], max_new_tokens=2, position_ids=torch.zeros(3, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"DynamicCache: give transformers\.EncoderDecoderCache"):
        model(**batch, past_key_values=DynamicCache())


def test_the_pipeline_returns_all_that_was_generated(exported: Callable[..., Path], load: Load) -> None:
    """Transformers' own text-generation pipeline would cut as many tokens off as the prompt has."""
    folder = exported(HYBRIDS["untied"])
    model, tokenizer = load(folder), transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = ["the king told", "a story of the sea"]
    options = {"max_new_tokens": 6, "do_sample": False}
    pipe = transformers.pipeline("text-generation", model=str(folder), trust_remote_code=True)
    found = pipe(texts, return_full_text=False, batch_size=2, **options)
    for text, (record,) in zip(texts, found, strict=True):
        ids = model.generate(**tokenizer([text], return_tensors="pt"), **options)
        assert record["generated_text"] == tokenizer.decode(ids[0], skip_special_tokens=True)
        assert len(record["generated_text"]) > 0
    assert pipe(texts[0], **options)[0]["generated_text"] == texts[0] + found[0][0]["generated_text"]


@pytest.mark.slow
def test_a_step_with_a_static_cache_is_one_graph(tied_folder: Path, load: Load, batch: Batch) -> None:
    model = load(tied_folder)
    step = torch.compile(model.__call__, fullgraph=True, backend="eager")
    with torch.no_grad():
        encoded = model.get_encoder()(batch["input_ids"])
        cache = EncoderDecoderCache(*(StaticCache(config=model.config, max_cache_len=length) for length in (8, 9)))
        first = model(
            encoder_outputs=encoded, decoder_input_ids=batch["decoder_input_ids"][:, :3], past_key_values=cache, use_cache=True
        )
        found = [first.logits]
        for place in range(3, 7):
            ids = batch["decoder_input_ids"][:, place : place + 1]
            found.append(step(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=cache, use_cache=True).logits)
        close(torch.cat(found, 1), model(**batch).logits)
