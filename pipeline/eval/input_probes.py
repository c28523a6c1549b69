"""Manipulations of the encoder's input that show what the decoder reads from it.

Only the encoder's ids and mask, both (B, N), are changed; the decoder's input and the targets stay as they are. If the loss
does not rise although the order of the encoder's tokens is lost, the model reads them as a bag of words at most.

Shapes: B rows, N encoder length, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.architectures.single_process import SingleProcessModel
from pipeline.data.batches import PipelineBatch
from pipeline.objectives.counter_rng import CounterRNG
from pipeline.objectives.interface import VALIDATION_SEED
from pipeline.objectives.loss import losses_of
from pipeline.objectives.vocabulary import Vocabulary

Bools = NDArray[np.bool_]
Change = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Other ids and mask (B, N) for the encoder ids and mask of a batch whose first row has this number."""


@dataclass(frozen=True, kw_only=True)
class InputUse:
    """Losses in nats per target token on the same targets, with other encoder inputs."""

    shuffled_loss: float
    """The text tokens of each row in random order."""
    far_half_shuffled_loss: float
    """The first half of each row's text tokens in random order: under prefix-LM the half farther from the targets."""
    no_input_loss: float
    """Every row reads one end token and nothing else."""


class Swap:
    """Gives every row the encoder input of another row."""

    def __init__(self, batches: Sequence[PipelineBatch]) -> None:
        self._ids, self._mask = (torch.cat([inputs[field] for inputs, _ in batches]) for field in (0, 1))
        self._rows = len(batches[0][0][0])
        used = self._mask.sum(1) > 0  # rows that fill the last micro-batch have no text
        self._partner = torch.arange(len(used))
        # far away, because the next row often continues the same document
        self._partner[used] = self._partner[used].roll(int(used.sum()) // 2)

    def __call__(self, index: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs of batch `index` with other encoder ids and masks."""
        other = self._partner[index * self._rows : (index + 1) * self._rows]
        return self._ids[other], self._mask[other], *inputs[2:]


def text_ids(vocabulary: Vocabulary, size: int) -> Bools:
    """(size,) true at ids of ordinary text: no sentinel, no start or end token, no other special token."""
    is_text = np.zeros(size, dtype=bool)
    is_text[vocabulary.ordinary[vocabulary.ordinary < size]] = True
    marks = [*vocabulary.sentinels, *vocabulary.named.values(), vocabulary.start, vocabulary.end]
    is_text[[mark for mark in marks if mark < size]] = False
    return is_text


def text_places(ids: Tensor, mask: Tensor, is_text: Bools) -> Tensor:
    """(B, N) true where a row has a token of text, and no padding. is_text (V,)."""
    return torch.from_numpy(is_text)[ids] & (mask > 0)


def first_half(places: Tensor) -> Tensor:
    """The first half of the true places of each row (B, N), rounded down."""
    return places & (places.cumsum(1) <= places.sum(1, keepdim=True) // 2)


def shuffle(ids: Tensor, places: Tensor, first_row: int) -> Tensor:
    """The ids (B, N) with those at the true `places` (B, N) of each row in random order; the others stay.

    The order depends on the number of the row alone, which is `first_row` for the first.
    """
    rows = np.arange(first_row, first_row + len(ids), dtype=np.int64)
    keys = torch.from_numpy(CounterRNG(VALIDATION_SEED, "shuffled input", rows).uniform(ids.shape[1]))
    # Both orders have the chosen places first; in one they are ascending, in the other random. The rest is the same in both.
    ascending = (~places).to(torch.int8).argsort(dim=1, stable=True)
    random = keys.masked_fill(~places, 2.0).argsort(dim=1, stable=True)
    return ids.scatter(1, ascending, ids.gather(1, random))


def constant_input(ids: Tensor, mask: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, N) of rows that have `token` at their first place and padding after it.

    Not an empty mask: attention without any key reads all padding evenly here, which no model was trained on.
    """
    constant, kept = torch.zeros_like(ids), torch.zeros_like(mask)
    constant[:, 0], kept[:, 0] = token, 1
    return constant, kept


def changes(is_text: Bools, end: int) -> dict[str, Change]:
    """The manipulations by the field of `InputUse` that has their loss. is_text (V,); `end` is the id of the end token."""

    def shuffled(first_row: int, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return shuffle(ids, text_places(ids, mask, is_text), first_row), mask

    def far_half_shuffled(first_row: int, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return shuffle(ids, first_half(text_places(ids, mask, is_text)), first_row), mask

    def no_input(first_row: int, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return constant_input(ids, mask, end)

    return {"shuffled_loss": shuffled, "far_half_shuffled_loss": far_half_shuffled, "no_input_loss": no_input}


@torch.no_grad()
def input_use(model: SingleProcessModel, batches: Sequence[PipelineBatch], vocabulary: Vocabulary) -> InputUse:
    """The losses of an encoder-decoder on `batches`, by one pass for each manipulation.

    Raises ValueError if the batches have no target.
    """

    def loss(change: Change) -> float:
        def changed(index: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            ids, mask, *rest = inputs
            return *change(index * len(ids), ids, mask), *rest

        return mean_loss(model, batches, changed)

    found = changes(text_ids(vocabulary, model.config.vocab_size), vocabulary.end)
    return InputUse(**{name: loss(change) for name, change in found.items()})


@torch.no_grad()
def mean_loss(
    model: SingleProcessModel,
    batches: Sequence[PipelineBatch],
    change: Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]],
) -> float:
    """Nats per target token of an encoder-decoder on `batches` of equal size, whose inputs become `change(index, inputs)`.

    Raises ValueError if the batches have no target.
    """
    total, count = 0.0, 0
    for index, (inputs, labels) in enumerate(batches):
        ((nll, weights),) = losses_of(model(model.inputs(change(index, inputs))), labels, model.factory)
        total += float(nll[weights > 0].double().sum())
        count += int((weights > 0).sum())
    if count == 0:
        raise ValueError("the batches hold no target tokens")
    return total / count
