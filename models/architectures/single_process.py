"""A whole model on one process: the modules of its pieces, nested at their canonical names and run in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from models.architectures.pieces import Piece, pieces
from models.config import ModelConfig
from models.layers.factory import TorchLayers


class SingleProcessModel(nn.Module):
    """The keys of `state_dict()` are the canonical names of weights on disk."""

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
        """The model's input type, from its fields in order."""
        return self._pieces[0].reads(*tensors)

    def run_pieces(self, state: Any, *, start: str = "", stop: str = "") -> Any:
        """Run the pieces from `start` (default: the first) up to and without `stop` (default: to the end)."""
        names = [piece.name for piece in self._pieces]
        first = names.index(start) if start else 0
        last = names.index(stop) if stop else len(names)
        for piece in self._pieces[first:last]:
            state = self._run(piece, state)
        return state

    def _run(self, piece: Piece, state: Any) -> Any:
        return piece.run(self.get_submodule(piece.tied_to or piece.name), state)

    def piece_after(self, prefix: str) -> str:
        """Name of the first piece after all those whose names start with `prefix`."""
        last = max(index for index, piece in enumerate(self._pieces) if piece.name.startswith(prefix))
        return self._pieces[last + 1].name


def _nest(root: nn.Module, name: str, child: nn.Module) -> None:
    """Add `child` at the dotted `name`, with plain containers for the parts of it."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, child)
