"""The whole decoder-only model on one process: GPT-2, or a decoder whose prefix is read in both directions.

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
class Read:
    """A text read so far: the mask of all its tokens, and what each layer remembers of them."""

    mask: Tensor  # (B, M so far) int64
    caches: list[LayerCache]

    def reorder(self, rows: Tensor, *, same_sample: bool = False) -> None:
        """Keep the given rows (R,) of the batch, in their order, repeats included."""
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

    def begin(self, batch_size: int, device: torch.device) -> Read:
        """Nothing read yet."""
        mask = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        return Read(mask, [LayerCache() for _ in range(self.config.num_decoder_layers)])

    def read(self, ids: Tensor, mask: Tensor, read: Read) -> Tensor:
        """Logits (B, 1, V) behind the last of M further tokens with their mask (B, M), as in `TextInputs`; `read` remembers the
        earlier ones.

        Rows of different lengths are padded on the left, so that their last tokens stand together. A prefix that is read in
        both directions must come whole, in the first call.
        """
        num_new = ids.shape[1]
        read.mask = torch.cat([read.mask, mask], dim=1)
        start = self.get_submodule("decoder.input")
        assert isinstance(start, StackInput)
        positions = positions_of(read.mask)[:, -num_new:]
        if start.positions is not None:
            start.positions.check(int(positions.max()) + 1)
        hidden = start(self.get_submodule("embedding")(ids), positions=positions)  # (B, M, D)
        tables = self.get_submodule("relative_bias")(mask)
        if self.config.decoder_mixing == "causal_fourier" and bool((read.mask == 0).any()):
            raise ValueError(
                "causal Fourier mixing (model.decoder_mixing) counts positions from the row's start: "
                "a decoder-only model that has it reads prompts of one length at a time"
            )
        bias = None
        if self._bias_rule is not None:
            bias = self._bias_rule.make(tables, read.mask, num_new, read.mask.shape[1], hidden.dtype)
        for index, cache in enumerate(read.caches):
            hidden = self.get_submodule(f"decoder.layers.{index}")(hidden, bias, read.mask, cache=cache)
        # the head on every token of a prompt would cost more than a narrow model's layers, and B x M x V floats
        return self.run_pieces(StackState(hidden[:, -1:], tables, mask, mask, mask), start=self._after_layers)
