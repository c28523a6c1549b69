"""The transforms inside each document of a packed row: each document has its own period, and documents do not mix.

Over tokens the matrices are block-diagonal: entry (n, m) is cos(2π a b / L) if both tokens belong to one document of L
tokens, at positions a and b in it, and 0 otherwise. They are symmetric, so the operator is still its own transpose.

Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.mixing.dft_tables import dft_tables
from models.mixing.transforms import TransformName


def document_tables(documents: Tensor, dtype: torch.dtype, norm: str) -> tuple[Tensor, Tensor]:
    """documents (B, N) int64, 0 at padding, else the number of a run of tokens → cosines and sines, each (B, N, N)."""
    num_tokens = documents.shape[1]
    index = torch.arange(num_tokens, device=documents.device)
    same = (documents[:, :, None] == documents[:, None, :]) & (documents > 0)[:, :, None]  # (B, N, N)
    length = same.sum(-1).clamp(min=1)  # (B, N)
    position = (same & (index[None, :] < index[:, None])).sum(-1)  # (B, N): tokens of the document before this one
    # modulo in integers first, as in tables.py
    angles = (position[:, :, None] * position[:, None, :]) % length[:, :, None]
    angles = angles.double() * (2 * math.pi) / length[:, :, None]
    scale = same.double() if norm == "backward" else same / length[:, :, None].double().sqrt()
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def mix_documents(x: Tensor, tables: tuple[Tensor, Tensor], transform: TransformName, norm: str) -> Tensor:
    """x (B, N, D), tables from `document_tables` → (B, N, D) in x's dtype."""
    cn, sn = tables
    cd, sd = dft_tables(x.shape[-1], x.device, x.dtype)
    if norm != "backward":
        cd, sd = cd / math.sqrt(x.shape[-1]), sd / math.sqrt(x.shape[-1])
    cosines, sines = cn @ x, sn @ x
    if transform == "hartley":
        return cosines @ (cd + sd) + sines @ (cd - sd)
    return cosines @ cd - sines @ sd
