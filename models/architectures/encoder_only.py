"""The encoder-only model on one process: BERT or FNet, with any of the heads of `layers/heads.py`.

Without heads it extracts features: `outputs.hidden` per token, `outputs.pooled` per text.
Shapes: B batch, N tokens, P predicted positions, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.architectures.pieces import EncoderInputs
from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig
from models.layers.heads import EncoderOutputs


class EncoderOnly(SingleProcessModel):
    def __init__(self, config: ModelConfig) -> None:
        if not config.is_encoder_only:
            raise ValueError(f"model.architecture is {config.architecture!r}: this is no encoder-only model, use build_model")
        super().__init__(config)

    def forward(self, inputs: EncoderInputs) -> EncoderOutputs:
        """The outputs of all heads of the model."""
        return self.run_pieces(inputs)


def encoder_inputs(
    ids: Tensor, mask: Tensor | None = None, type_ids: Tensor | None = None, mlm_positions: Tensor | None = None
) -> EncoderInputs:
    """ids (B, N) int64; by default every position is a token of segment 0 and is predicted."""
    return EncoderInputs(
        ids,
        torch.ones_like(ids) if mask is None else mask,
        torch.zeros_like(ids) if type_ids is None else type_ids,
        ids[:, :0] if mlm_positions is None else mlm_positions,
    )
