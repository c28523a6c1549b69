"""Decoding with any generative model: start with a batch of prompts, then append one token to every row at a time, with caches.

Shapes: B rows, N prompt tokens, V vocabulary without its padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.architectures.decoder import LayerCache
from models.architectures.decoder_only import DecoderOnly, TextCache
from models.architectures.seq2seq import Encoded, Seq2Seq
from models.architectures.single_process import SingleProcessModel


class DecodingSession:
    """A batch that is being generated: the caches of the model, and the logits of the next token."""

    def __init__(self, model: SingleProcessModel, ids: Tensor, mask: Tensor, start_id: int) -> None:
        """ids and mask (B, N) int64: the encoder's input, or a decoder-only model's prompt padded on the left.

        `start_id` is the first input of an encoder-decoder's decoder. Raises ValueError for an encoder-only model.
        """
        self.model = model
        self.batch_size, self.device = ids.shape[0], ids.device
        self._cache: Encoded | TextCache
        if isinstance(model, Seq2Seq):
            self._cache = model.encode(ids, mask)
            start = torch.full((self.batch_size,), start_id, dtype=torch.int64, device=ids.device)
            self.logits = self._read(start.unsqueeze(1))
        elif isinstance(model, DecoderOnly):
            self._cache = model.begin(self.batch_size, ids.device)
            self.logits = self._last(model.read(ids, mask, self._cache))
        else:
            raise ValueError(
                f"model.architecture is {model.config.architecture!r}: an encoder-only model does not generate text"
            )

    @property
    def caches(self) -> list[LayerCache]:
        """One cache a decoder layer."""
        return self._cache.caches

    def write(self, tokens: Tensor) -> None:
        """Append one token (B,) to every row; `logits` (B, V) are then those of the next token."""
        self.logits = self._read(tokens.unsqueeze(1))

    def reorder(self, rows: Tensor, *, same_sample: bool) -> None:
        """Keep the given rows (R,), in that order; a row may be repeated. `same_sample`: each new row is of the sample of the
        old one."""
        self._cache.reorder(rows, same_sample=same_sample)
        self.logits = self.logits[rows]

    def _read(self, ids: Tensor) -> Tensor:
        if isinstance(self._cache, Encoded):
            assert isinstance(self.model, Seq2Seq)
            return self._last(self.model.decode(ids, self._cache))
        assert isinstance(self.model, DecoderOnly)
        return self._last(self.model.read(ids, torch.ones_like(ids), self._cache))

    def _last(self, logits: Tensor) -> Tensor:
        return logits[:, -1, : self.model.config.vocab_size]


def prepare_prompts(
    model: SingleProcessModel, prompts: Sequence[Sequence[int]], encoder_length: int, start_id: int
) -> tuple[Tensor, Tensor]:
    """The input of `model` for B prompts: ids and mask (B, N) for `DecodingSession`. Long prompts keep their last tokens.

    An encoder reads `encoder_length` tokens. A decoder-only model reads one more, because in training its rows begin
    with the start token.
    """
    if model.config.is_decoder_only:
        started = [[start_id, *list(tokens)[-encoder_length:]] for tokens in prompts]
        return pad_prompts(started, encoder_length + 1, pad_id=0, prefix=model.config.architecture == "prefix_decoder")
    return pad_prefixes(prompts, encoder_length, pad_id=0)


def pad_prefixes(prefixes: Sequence[Sequence[int]], encoder_length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of B prefixes → ids and mask (B, N), both int64. A longer prefix keeps its last N tokens.

    N is the encoder length of the training run, because the Fourier basis depends on it.
    """
    ids = torch.full((len(prefixes), encoder_length), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prefix in enumerate(prefixes):
        kept = torch.as_tensor(list(prefix)[-encoder_length:], dtype=torch.int64)
        ids[row, : len(kept)] = kept
        mask[row, : len(kept)] = 1
    return ids, mask


def pad_prompts(
    prompts: Sequence[Sequence[int]], max_length: int, pad_id: int, *, prefix: bool = False
) -> tuple[Tensor, Tensor]:
    """Token ids of B prompts for a decoder-only model → ids and mask (B, longest), padded on the left.

    A longer prompt keeps its last `max_length` tokens. `prefix` marks them as read in both directions.
    """
    kept = [list(prompt)[-max_length:] for prompt in prompts]
    ids = torch.full((len(kept), max(map(len, kept))), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(kept):
        ids[row, ids.shape[1] - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask[row, ids.shape[1] - len(prompt) :] = 2 if prefix else 1
    return ids, mask
