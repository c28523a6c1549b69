"""Standard errors of statistics of a joint fit from few clusters of dependent errors.

Errors of the places of one arm and size depend on each other: they share a plateau, a learning rate, and the lack of fit of the
surface at that size. The covariance is the cluster-robust one with Bell and McCaffrey's correction (CR2): the residuals of a
cluster are multiplied by the inverse square root of its block of I - H, so their covariance is unbiased if the errors are
independent, and nearly so otherwise. The interval is Student's t with Satterthwaite's degrees of freedom. (R. Bell and D.
McCaffrey 2002, Survey Methodology 28; J. Pustejovsky and E. Tipton 2018, doi:10.1080/07350015.2016.1247004.)

A bootstrap of the clusters cannot be stratified here: most sizes have one run, so a stratum has nothing to draw. Drawing signs
(wild bootstrap) has too narrow intervals with ten clusters. docs/scaling.md has the comparison.

Shapes: Q statistics, R places, K coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.scaling.fit.joint.surfaces import JointFit
from pipeline.scaling.fit.points import Floats

_STEP = 1e-4
_LEAST = 1e-9

Statistic = Callable[[Floats], Floats]
"""Coefficients (P, K) → (P, Q)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Q statistics of a fit with their standard errors: all (Q,)."""

    value: Floats
    error: Floats
    dof: Floats
    influence: Floats
    """Derivatives of the statistics by the log loss of each place, (Q, R)."""

    def half_width(self, level: float = 0.95) -> Floats:
        """Half of the interval's width."""
        width: Floats = stats.t.ppf(0.5 + level / 2, self.dof) * self.error
        return width


def estimate(fit: JointFit, statistic: Statistic) -> Estimate:
    """The statistics at the fit, with cluster-robust errors."""
    slopes, residuals, cluster = fit.slopes, fit.residuals, fit.model.places.cluster
    root = np.linalg.pinv(np.concatenate([slopes, fit.model.hold]), rcond=1e-12)[:, : len(slopes)]  # (K, R)
    influence = gradient(fit, statistic) @ root  # (Q, R)
    left = np.eye(len(residuals)) - slopes @ root  # I - H
    variance, weights = np.zeros(len(influence)), []
    for number in range(int(cluster.max()) + 1):
        own = np.flatnonzero(cluster == number)
        size, axes = np.linalg.eigh(left[np.ix_(own, own)])
        # where I - H is 0 the fit goes through the places whatever their errors are
        scale = np.where(size > _LEAST, 1 / np.sqrt(np.maximum(size, _LEAST)), 0.0)
        adjusted = influence[:, own] @ (axes * scale) @ axes.T  # (Q, own)
        variance += (adjusted @ residuals[own]) ** 2
        weights.append(adjusted @ left[own])
    spread = np.stack(weights, axis=1)  # (Q, clusters, R)
    cross = spread @ np.swapaxes(spread, 1, 2)
    trace = np.einsum("qgg->q", cross)
    dof = trace**2 / np.maximum((cross**2).sum((1, 2)), np.finfo(float).tiny)
    value = statistic(fit.coefficients[None])[0]
    return Estimate(value=value, error=np.sqrt(variance), dof=np.maximum(dof, 1.0), influence=influence)


def gradient(fit: JointFit, statistic: Statistic) -> Floats:
    """Derivatives of the statistics by the coefficients, (Q, K), by central differences."""
    steps = _STEP * np.eye(len(fit.coefficients))
    ahead, behind = statistic(fit.coefficients + steps), statistic(fit.coefficients - steps)  # (K, Q)
    return (ahead - behind).T / (2 * _STEP)
