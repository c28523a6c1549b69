"""Text in, text out: a run's model continues a prefix, streamed as it is written."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer

from data_prep.tokenizer import eos_id, start_id
from models.generation import Sampling, generate, pad_prefixes
from models.seq2seq import Seq2Seq

_UNFINISHED = "�"  # what a character decodes to while some of its bytes are still to come


def write_text(model: Seq2Seq, tokenizer: Tokenizer, prompt: str, encoder_length: int, sampling: Sampling) -> Iterator[str]:
    """Yield pieces of the continuation of `prompt`, whole characters only.

    The encoder reads the prompt's last `encoder_length` tokens. Raises ValueError for an empty prompt.
    """
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    if not ids:
        raise ValueError("the prompt is empty: give some text for the encoder to read")
    end = eos_id(tokenizer)
    encoder_ids, encoder_mask = pad_prefixes([ids], encoder_length, pad_id=0)
    written: list[int] = []
    shown = ""
    for token in generate(model, encoder_ids, encoder_mask, start_id=start_id(tokenizer), eos_id=end, sampling=sampling):
        if int(token) == end:
            break
        written.append(int(token))
        text = tokenizer.decode(written)
        if not text.endswith(_UNFINISHED):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(written)[len(shown) :]
    if rest:
        yield rest
