"""The whole encoder-decoder on one process, its modules nested at their canonical names.

Shapes: B batch, N encoder tokens, M decoder tokens, D model width, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from models.config import ModelConfig
from models.decoder import LayerCache
from models.layers import TorchLayers
from models.pieces import Inputs, Piece, State, pieces


@dataclass
class Encoded:
    """An encoded prefix and what the decoder has computed on top of it so far."""

    state: State
    caches: list[LayerCache] = field(default_factory=list)


class Seq2Seq(nn.Module):
    """`state_dict()` of this module has the canonical names that weights on disk use."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("model.vocab_size is 0: set it to the tokenizer's size before building the model")
        self.config = config
        self.factory = TorchLayers()
        self._pieces = pieces(config, self.factory)
        for piece in self._pieces:
            if piece.tied_to is None:
                _nest(self, piece.name, piece.build(self.factory))
        first_decoder_piece = [piece.name for piece in self._pieces].index("decoder.layers.0")
        self._encoder_pieces = self._pieces[:first_decoder_piece]
        self._decoder_layers = self._pieces[first_decoder_piece : first_decoder_piece + config.num_decoder_layers]
        self._output_pieces = self._pieces[first_decoder_piece + config.num_decoder_layers :]

    def forward(self, inputs: Inputs) -> Tensor:
        """fp32 logits (B, M, V)."""
        state: Any = inputs
        for piece in self._pieces:
            state = self._run(piece, state)
        return state

    def encode(self, encoder_ids: Tensor, encoder_mask: Tensor) -> Encoded:
        """Run the encoder once over (B, N) ids; decode() then takes any number of steps."""
        state: Any = Inputs(encoder_ids, encoder_mask, encoder_ids[:, :0])
        for piece in self._encoder_pieces:
            state = self._run(piece, state)
        return Encoded(state, [LayerCache() for _ in self._decoder_layers])

    def decode(self, decoder_ids: Tensor, encoded: Encoded) -> Tensor:
        """Logits (B, M, V) of M further decoder tokens; `encoded` remembers the earlier ones."""
        state = encoded.state
        hidden = self.get_submodule("embedding")(decoder_ids)  # (B, M, D)
        for piece, cache in zip(self._decoder_layers, encoded.caches, strict=True):
            layer = self.get_submodule(piece.name)
            hidden = layer(hidden, state.encoder_hidden, state.encoder_mask, state.bias_tables, cache)
        output: Any = state._replace(decoder_hidden=hidden)
        for piece in self._output_pieces:
            output = self._run(piece, output)
        return output

    def _run(self, piece: Piece, state: Any) -> Any:
        return piece.run(self.get_submodule(piece.tied_to or piece.name), state)


def _nest(root: nn.Module, name: str, child: nn.Module) -> None:
    """Hang `child` at the dotted `name`, making plain containers on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, child)
