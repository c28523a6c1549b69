"""The looks of arms: distinct for readers with normal vision and with each form of dichromacy, by Machado et al. 2009."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.scaling.ladder.arm_models import ARM_MODELS
from pipeline.scaling.report.palette import COLOURS, Look

# G. Machado, M. Oliveira, L. Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# severity 1.0: matrices for linear RGB (doi:10.1109/TVCG.2009.113).
SEEN_BY = {
    "normal vision": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# IEC 61966-2-1: linear sRGB to CIE XYZ, white D65
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
LEAST = 15.0
"""CIE76; about 2.3 is just noticeable side by side (Mahy et al. 1994), and lines are thin and apart."""


def linear(colour: str) -> NDArray[np.float64]:
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    share = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: tuple[str, ...], vision: str) -> float:
    seen = [lab(np.array(SEEN_BY[vision]) @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2))


@pytest.mark.parametrize("vision", SEEN_BY)
def test_colours_are_distinct(vision: str) -> None:
    assert nearest(COLOURS, vision) > LEAST


def test_the_measure_finds_colours_that_look_alike() -> None:
    """Matplotlib's green and red, and the green and the grey of the palette that was here before."""
    assert nearest(("#2ca02c", "#d62728"), "normal vision") > 100
    assert nearest(("#2ca02c", "#d62728"), "deuteranopia") < LEAST + 15
    assert nearest(("#009E73", "#7F7F7F"), "deuteranopia") < LEAST


def test_white_stays_white() -> None:
    for matrix in SEEN_BY.values():
        assert np.array(matrix) @ np.ones(3) == pytest.approx(np.ones(3), abs=1e-5)


def test_no_two_arms_look_alike_without_colour() -> None:
    """All arms of the ladders at once: colour alone never tells two of them apart."""
    look = Look(list(ARM_MODELS))
    assert len(ARM_MODELS) > 2 * len(COLOURS)
    looks = [look.of(arm) for arm in ARM_MODELS]
    whole = [(one["color"], one["marker"], str(one["linestyle"])) for one in looks]
    assert len(set(whole)) == len(whole)
    for one, other in combinations(looks, 2):
        if one["marker"] == other["marker"]:
            assert one["color"] != other["color"]
        if one["color"] == other["color"]:
            assert (one["marker"], one["linestyle"]) != (other["marker"], other["linestyle"])
