"""Hartley mixing: real minus imaginary part of the 2-D discrete Fourier transform (Sparse Mixers, arXiv:2205.12399).

It costs as much as the real part alone and loses no information: with orthonormal scale the transform is its own inverse,
whereas the real part maps the odd half of its input to 0. FNet's authors found equal GLUE scores (arXiv:2105.03824,
appendix A.3).
"""

from __future__ import annotations

from models.mixing.fourier import FourierMixing
from models.mixing.transforms import TransformName


class HartleyMixing(FourierMixing):
    """Interface and options of `FourierMixing`."""

    transform: TransformName = "hartley"
