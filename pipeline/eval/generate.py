"""Generation from text to text: the continuation of one prompt as a stream, or those of many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer
from torch import Tensor

from data_prep.tokenization.tokenizer import eos_id, start_id
from models.architectures.single_process import SingleProcessModel
from models.generation.beam_search import beam_search
from models.generation.decode import prepare_prompts
from models.generation.sampling import Sampling, generate

_UNFINISHED = "�"  # what an incomplete UTF-8 character decodes to


def write_text(
    model: SingleProcessModel,
    tokenizer: Tokenizer,
    prompt: str,
    encoder_length: int,
    sampling: Sampling,
    stops: Sequence[int] = (),
) -> Iterator[str]:
    """Yield pieces of the continuation of `prompt`, whole characters only; with beams, the whole text at once.

    The encoder reads the prompt's last `encoder_length` tokens. The text ends before the end token or one of `stops`.
    Raises ValueError for an empty prompt.
    """
    if sampling.num_beams > 1:
        yield write_texts(model, tokenizer, [prompt], encoder_length, sampling, stops)[0]
        return
    ends = [eos_id(tokenizer), *stops]
    ids, mask = _encode(model, tokenizer, [prompt], encoder_length)
    written: list[int] = []
    shown = ""
    for token in generate(model, ids, mask, start_id=start_id(tokenizer), eos_id=ends, sampling=sampling):
        if int(token) in ends:
            break
        written.append(int(token))
        text = tokenizer.decode(written)
        if not text.endswith(_UNFINISHED):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(written)[len(shown) :]
    if rest:
        yield rest


def write_texts(
    model: SingleProcessModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    encoder_length: int,
    sampling: Sampling,
    stops: Sequence[int] = (),
) -> list[str]:
    """The continuations of a batch of prompts, as in `write_text`; with beams, the best one of each prompt."""
    ends = [eos_id(tokenizer), *stops]
    ids, mask = _encode(model, tokenizer, prompts, encoder_length)
    begin = start_id(tokenizer)
    if sampling.num_beams > 1:
        found = beam_search(model, ids, mask, start_id=begin, eos_id=ends, sampling=sampling)
        rows = [beams[0].tokens for beams in found]
    else:
        steps = [token.tolist() for token in generate(model, ids, mask, start_id=begin, eos_id=ends, sampling=sampling)]
        rows = [list(row) for row in zip(*steps, strict=True)]
    return [tokenizer.decode(_before(row, ends)) for row in rows]


def stop_ids(tokenizer: Tokenizer, stops: Sequence[str]) -> list[int]:
    """The ids of stop tokens given as text. Raises ValueError for text that is more than one token."""
    result = []
    for text in stops:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f"--stop {text!r} is {len(ids)} tokens of this run's tokenizer: give a text that is one token")
        result += ids
    return result


def _before(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:end])


def _encode(
    model: SingleProcessModel, tokenizer: Tokenizer, prompts: Sequence[str], encoder_length: int
) -> tuple[Tensor, Tensor]:
    ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    for number, tokens in enumerate(ids, 1):
        if not tokens:
            where = f" (number {number})" if len(prompts) > 1 else ""
            raise ValueError(f"the prompt{where} is empty: give some text for the encoder to read")
    return prepare_prompts(model, ids, encoder_length, start_id(tokenizer))
