"""Regret widens intervals on one side, by what a fit with the lower losses shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.scaling.fit.joint.by_compute import covered, multiplier_band, multiplier_estimate
from pipeline.scaling.fit.joint.regret import Regret, Regrets, interval_with_regret, place_regrets, regret_shifts
from pipeline.scaling.fit.joint.surfaces import JointFit, fit_jointly, joint_places


@pytest.fixture(scope="module")
def fit(attention: Any, fourier: Any) -> JointFit:
    noise = 0.003 * np.random.default_rng(0).standard_normal((2, 14))
    return fit_jointly(joint_places([*attention.ladder("t5", noise[0]), *fourier.ladder("fnet_t5", noise[1])]))


def of_arm(fit: JointFit, arm: int, loss: float, error: float = 0.0) -> Regrets:
    own = fit.model.places.arm == arm
    return Regrets(np.where(own, loss, 0.0), np.where(own, error, 0.0))


def test_regret_of_the_arm_lowers_the_low_end_by_what_a_refit_shows(fit: JointFit) -> None:
    log_c, _ = covered(fit, (0, 1))
    found = multiplier_estimate(fit, (0, 1), log_c[-1:])
    plain = interval_with_regret(fit, found, None)
    low, high = interval_with_regret(fit, found, of_arm(fit, 1, 0.002))
    places = fit.model.places
    better = np.where(places.arm == 1, places.runs.loss * np.exp(-0.002), places.runs.loss)
    refit = fit_jointly(replace(places, runs=replace(places.runs, loss=better)))
    shift = multiplier_estimate(refit, (0, 1), log_c[-1:]).value[0] - found.value[0]
    assert shift < 0
    assert low[0] - plain[0][0] == pytest.approx(shift, rel=0.05)
    assert high[0] == pytest.approx(plain[1][0])


def test_regret_of_the_baseline_raises_the_high_end(fit: JointFit) -> None:
    log_c, _ = covered(fit, (0, 1))
    found = multiplier_estimate(fit, (0, 1), log_c)
    down, up, error = regret_shifts(fit, found, of_arm(fit, 0, 0.002))
    assert down == pytest.approx(np.zeros(17))
    assert (up > 0).all()
    assert (error == 0).all()
    band, plain = multiplier_band(fit, (0, 1), of_arm(fit, 0, 0.002)), multiplier_band(fit, (0, 1))
    assert band.value == pytest.approx(plain.value)
    assert band.low == pytest.approx(plain.low)
    assert band.high == pytest.approx(plain.high * np.exp(up))


def test_the_error_of_a_regret_adds_in_squares(fit: JointFit) -> None:
    log_c, _ = covered(fit, (0, 1))
    found = multiplier_estimate(fit, (0, 1), log_c[-1:])
    low, high = interval_with_regret(fit, found, of_arm(fit, 1, 0.0, 0.001))
    extra = 0.001 * np.abs(found.influence[0][fit.model.places.arm == 1]).sum()
    expected = np.hypot(found.half_width()[0], 1.959964 * extra)
    assert (high[0] - low[0]) / 2 == pytest.approx(expected, rel=1e-6)


def test_regrets_are_read_by_run(fit: JointFit) -> None:
    places = fit.model.places
    several = next(number for number, seeds in enumerate(places.seeds) if len(seeds) == 3)
    found = place_regrets(places, {places.seeds[several][0]: Regret(0.03, 0.003), "unknown": 0.5})
    assert found.loss[several] == pytest.approx(np.log1p(0.01))
    assert found.error[several] == pytest.approx(0.001)
    assert np.count_nonzero(found.loss) == 1


@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf")])
def test_impossible_regrets_are_refused(fit: JointFit, value: float) -> None:
    with pytest.raises(ValueError, match=r"the regret of runs/t5-d64 is .*it must be 0 or more"):
        place_regrets(fit.model.places, {"runs/t5-d64": value})
