"""The decoder-only model on one process: GPT-2, or a decoder that reads its prefix in both directions.

Shapes: B batch, M tokens, D model width, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.architectures.decoder import LayerCache, positions_of
from models.architectures.pieces import StackState, TextInputs
from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig
from models.layers.attention_bias import decoder_bias_rule
from models.layers.embedding import StackInput


@dataclass
class TextCache:
    """The texts read so far: the mask of all their tokens, and the caches of the layers."""

    mask: Tensor  # (B, M so far) int64
    caches: list[LayerCache]

    def reorder(self, rows: Tensor, *, same_sample: bool = False) -> None:
        """Keep the given rows (R,) of the batch, in that order; a row may be repeated."""
        self.mask = self.mask[rows]
        for cache in self.caches:
            cache.reorder(rows, cross=False)


class DecoderOnly(SingleProcessModel):
    def __init__(self, config: ModelConfig) -> None:
        if not config.is_decoder_only:
            raise ValueError(f"model.architecture is {config.architecture!r}: this is no decoder-only model, use build_model")
        super().__init__(config)
        self._after_layers = self.piece_after("decoder.layers.")
        self._bias_rule = decoder_bias_rule(config)

    def forward(self, inputs: TextInputs) -> Tensor:
        """fp32 logits (B, M, V)."""
        return self.run_pieces(inputs)

    def begin(self, batch_size: int, device: torch.device) -> TextCache:
        """A cache without any text."""
        mask = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        return TextCache(mask, [LayerCache() for _ in range(self.config.num_decoder_layers)])

    def read(self, ids: Tensor, mask: Tensor, text: TextCache) -> Tensor:
        """Logits (B, 1, V) after the last of M further tokens; ids and mask (B, M) as in `TextInputs`. `text` holds the earlier
        tokens.

        Rows of different lengths are padded on the left, so that their last tokens are aligned. A prefix that is read in both
        directions must be given whole, in the first call.
        """
        num_new = ids.shape[1]
        text.mask = torch.cat([text.mask, mask], dim=1)
        start = self.get_submodule("decoder.input")
        assert isinstance(start, StackInput)
        positions = positions_of(text.mask)[:, -num_new:]
        if start.positions is not None:
            start.positions.check(int(positions.max()) + 1)
        hidden = start(self.get_submodule("embedding")(ids), positions=positions)  # (B, M, D)
        tables = self.get_submodule("relative_bias")(mask)
        if self.config.decoder_mixing == "causal_fourier" and bool((text.mask == 0).any()):
            raise ValueError(
                "causal Fourier mixing (model.decoder_mixing) counts positions from the start of the row: "
                "give a decoder-only model prompts of one length at a time"
            )
        bias = None
        if self._bias_rule is not None:
            bias = self._bias_rule.make(tables, text.mask, num_new, text.mask.shape[1], hidden.dtype)
        for index, cache in enumerate(text.caches):
            hidden = self.get_submodule(f"decoder.layers.{index}")(hidden, bias, text.mask, cache=cache)
        # the last token only: logits of a whole prompt would be B x M x V floats and most of a narrow model's work
        return self.run_pieces(StackState(hidden[:, -1:], tables, mask, mask, mask), start=self._after_layers)
