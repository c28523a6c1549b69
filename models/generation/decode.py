"""One way to write with any model that writes: begin with a batch of prompts, then one token a row at a time, with caches.

Shapes: B rows, N prompt tokens, V vocabulary without its padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.architectures.decoder import LayerCache
from models.architectures.decoder_only import DecoderOnly, Read
from models.architectures.seq2seq import Encoded, Seq2Seq
from models.architectures.single_process import SingleProcessModel


class DecodingSession:
    """A batch being written: what the model remembers, and the logits of the next token."""

    def __init__(self, model: SingleProcessModel, ids: Tensor, mask: Tensor, start_id: int) -> None:
        """ids and mask (B, N) int64: the encoder's input, or a decoder-only model's prompt padded on the left.

        `start_id` is the decoder's first input; a decoder-only model needs none. Raises ValueError for an encoder-only model.
        """
        self.model = model
        self.batch_size, self.device = ids.shape[0], ids.device
        self._memory: Encoded | Read
        if isinstance(model, Seq2Seq):
            self._memory = model.encode(ids, mask)
            start = torch.full((self.batch_size,), start_id, dtype=torch.int64, device=ids.device)
            self.logits = self._read(start.unsqueeze(1))
        elif isinstance(model, DecoderOnly):
            self._memory = model.begin(self.batch_size, ids.device)
            self.logits = self._last(model.read(ids, mask, self._memory))
        else:
            raise ValueError(f"model.architecture is {model.config.architecture!r}: an encoder-only model writes no text")

    @property
    def caches(self) -> list[LayerCache]:
        """What each decoder layer remembers."""
        return self._memory.caches

    def write(self, tokens: Tensor) -> None:
        """Append one token (B,) to every row; `logits` (B, V) are then those of the next."""
        self.logits = self._read(tokens.unsqueeze(1))

    def reorder(self, rows: Tensor, *, same_sample: bool) -> None:
        """Keep the given rows (R,) in their order, repeats included; `same_sample` where each comes from its own sample."""
        self._memory.reorder(rows, same_sample=same_sample)
        self.logits = self.logits[rows]

    def _read(self, ids: Tensor) -> Tensor:
        if isinstance(self._memory, Encoded):
            assert isinstance(self.model, Seq2Seq)
            return self._last(self.model.decode(ids, self._memory))
        assert isinstance(self.model, DecoderOnly)
        return self._last(self.model.read(ids, torch.ones_like(ids), self._memory))

    def _last(self, logits: Tensor) -> Tensor:
        return logits[:, -1, : self.model.config.vocab_size]


def prepare_prompts(
    model: SingleProcessModel, prompts: Sequence[Sequence[int]], encoder_length: int, start_id: int
) -> tuple[Tensor, Tensor]:
    """What `model` reads of B prompts: ids and mask (B, N) as `DecodingSession` takes them. Of each the last tokens are kept.

    An encoder reads `encoder_length` tokens. A decoder alone reads one more: its rows begin with the start token in training.
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
