"""A whole model on one process, made of its pieces: modules nested at their canonical names, run in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from models.architectures.pieces import Piece, pieces
from models.config import ModelConfig
from models.layers.factory import TorchLayers


class SingleProcessModel(nn.Module):
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

    def inputs(self, tensors: Sequence[Any]) -> Any:
        """The fields of an input, in their order, as the type that the model takes."""
        return self._pieces[0].reads(*tensors)

    def run_pieces(self, state: Any, *, start: str = "", stop: str = "") -> Any:
        """Run the pieces from `start` (the first) up to, not including, `stop` (to the end)."""
        names = [piece.name for piece in self._pieces]
        first = names.index(start) if start else 0
        last = names.index(stop) if stop else len(names)
        for piece in self._pieces[first:last]:
            state = self._run(piece, state)
        return state

    def _run(self, piece: Piece, state: Any) -> Any:
        return piece.run(self.get_submodule(piece.tied_to or piece.name), state)

    def piece_after(self, prefix: str) -> str:
        """Name of the first piece behind all those whose names start with `prefix`."""
        last = max(index for index, piece in enumerate(self._pieces) if piece.name.startswith(prefix))
        return self._pieces[last + 1].name


def _nest(root: nn.Module, name: str, child: nn.Module) -> None:
    """Hang `child` at the dotted `name`, making plain containers on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, child)
