"""A growing cache compared with concatenation for each token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.architectures.decoder import LayerCache


def tokens(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, count, 4, generator=generator), torch.randn(3, 2, count, 4, generator=generator)


@pytest.mark.parametrize("chunks", [[1] * 300, [200, *[1] * 100], [5, 90, 1, 70, 1]])
def test_the_cache_returns_all_written_tokens(chunks: list[int]) -> None:
    cache, keys, values = LayerCache(), [], []
    for number, count in enumerate(chunks):
        new = tokens(count, number)
        found = cache.extend(*new)
        keys.append(new[0])
        values.append(new[1])
        if number % 7 == 3:  # like beams
            order = torch.tensor([2, 2, 0])
            cache.reorder(order, cross=True)
            keys, values = [[torch.cat(parts, dim=2)[order]] for parts in (keys, values)]
            assert cache.self_keys_values is not None
            found = cache.self_keys_values
        torch.testing.assert_close(found, (torch.cat(keys, dim=2), torch.cat(values, dim=2)), rtol=0, atol=0)


def test_a_token_is_written_without_copying_the_earlier_ones() -> None:
    cache = LayerCache()
    cache.extend(*tokens(1000, 0))
    places = [cache.extend(*tokens(1, number))[0].data_ptr() for number in range(1, 200)]
    assert len(set(places)) == 1  # one copy, for the first token, into a buffer that is 25 % longer
    assert cache.buffer is not None
    assert cache.buffer[0].shape[2] == 1001 + 250
