"""No mixing: the feed-forward-only control (FNet's FF_ONLY, arXiv:2105.03824, section 3.4).

In an encoder-decoder the cross-attention still mixes tokens, so an experiment without this control shows little about a mixer.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers.attention_bias import ScoreBias


class IdentityMixing(nn.Module):
    def forward(self, hidden: Tensor, mask: Tensor, score_bias: ScoreBias | None = None) -> Tensor:
        """Returns hidden unchanged. With the residual around it the sum is 2x, as in f_net."""
        return hidden
