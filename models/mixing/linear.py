"""Linear mixing: two learnt matrices, one over tokens and one over features, y = T x W (FNet's LINEAR, arXiv:2105.03824,
section 3.4).

Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers.attention_bias import ScoreBias
from models.layers.initialization import normal_parameter

_STD = 0.02  # of both matrices, as in f_net/layers.py


def mix_by_matrices(hidden: Tensor, mask: Tensor, over_tokens: Tensor, over_features: Tensor) -> Tensor:
    """hidden (B, N, D), mask (B, N) with 0 at padding, matrices (L, L) with L >= N and (D, D); returns (B, N, D).

    A shorter input uses the first N rows and columns of the token matrix: the same as padding the input with zeros to L.
    Raises ValueError if N exceeds L.
    """
    num_tokens, limit = hidden.shape[1], over_tokens.shape[0]
    if num_tokens > limit:
        raise ValueError(
            f"the input has {num_tokens} tokens, this mixing layer's matrix is made for model.max_length {limit}: "
            "shorten the input, or build the model with a larger model.max_length"
        )
    x = hidden * (mask > 0).unsqueeze(-1).to(hidden.dtype)
    return over_tokens[:num_tokens, :num_tokens].to(x.dtype) @ (x @ over_features.to(x.dtype))


class LinearMixing(nn.Module):
    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.over_tokens = normal_parameter((max_length, max_length), _STD)
        self.over_features = normal_parameter((d_model, d_model), _STD)

    def forward(self, hidden: Tensor, mask: Tensor, score_bias: ScoreBias | None = None) -> Tensor:
        return mix_by_matrices(hidden, mask, self.over_tokens, self.over_features)
