"""Hartley mixing: real minus imaginary part of the 2-D discrete Fourier transform (Sparse Mixers, arXiv:2205.12399).

At the same cost as the real part alone it loses nothing: orthonormally scaled, the transform is its own inverse, while the real
part annihilates the odd half of its input. FNet's authors found equal GLUE scores (arXiv:2105.03824, appendix A.3).
"""

from __future__ import annotations

from models.mixing.fourier import FourierMixing
from models.mixing.transforms import TransformName


class HartleyMixing(FourierMixing):
    """Same interface and options as Fourier mixing."""

    transform: TransformName = "hartley"
