"""Which of E, alpha and beta the arms of a joint fit share: nested models, compared by F-tests.

F compares the sum of squares of a fit that shares a set of constants with that of the fit that shares none. Its distribution
assumes independent errors, but those of one arm and size are not. So the decision is by a wild bootstrap of the clusters: the
residuals of the fit that shares, with one random sign for each cluster, are refitted by both (linearised), and p is the share
of F values as large as the measured one (Cameron, Gelbach & Miller 2008, doi:10.1162/rest.90.3.414).

Shapes: B draws, R places.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.scaling.fit.joint.surfaces import CONSTANTS, JointFit, Places, fit_jointly
from pipeline.scaling.fit.points import Floats

LEVEL = 0.05
_DRAWS, _SEED = 999, 0


@dataclass(frozen=True, kw_only=True)
class SharingTest:
    """An F-test of one set of shared constants against none."""

    shared: tuple[str, ...]
    f: float
    dof: tuple[int, int]
    """Of numerator and denominator."""
    p: float
    """Of the F distribution, which assumes independent errors."""
    p_clusters: float
    """Of the wild bootstrap of the clusters; it decides."""

    @property
    def is_refused(self) -> bool:
        return self.p_clusters < LEVEL


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The joint fit with as many shared constants as the tests leave, and these tests in their order."""

    fit: JointFit
    tests: tuple[SharingTest, ...]
    untested: str | None = None
    """Why nothing was tested: then all are shared."""

    @property
    def shared(self) -> tuple[str, ...]:
        return tuple(name for name in CONSTANTS if name in self.fit.model.shared)


def choose_sharing(places: Places) -> Sharing:
    """Share all three constants if the test does not refuse it, else two, else one, else none.

    Among sets of one size that are not refused the one with the smallest F is chosen. Raises ValueError as `fit_jointly` does.
    """
    restricted: dict[tuple[str, ...], JointFit] = {CONSTANTS: fit_jointly(places, CONSTANTS)}
    try:
        full = fit_jointly(places, (), start=restricted[CONSTANTS])
    except ValueError as error:
        return Sharing(fit=restricted[CONSTANTS], tests=(), untested=str(error))
    tests: list[SharingTest] = []
    for count in (3, 2, 1):
        found = []
        for shared in itertools.combinations(CONSTANTS, count):
            if shared not in restricted:
                try:
                    restricted[shared] = fit_jointly(places, shared, start=restricted[CONSTANTS])
                except ValueError:  # no surfaces that fall: not a candidate
                    continue
            found.append(sharing_test(restricted[shared], full))
        tests += found
        kept = [test for test in found if not test.is_refused]
        if kept:
            best = min(kept, key=lambda test: test.f)
            return Sharing(fit=restricted[best.shared], tests=tuple(tests))
    return Sharing(fit=full, tests=tuple(tests))


def sharing_test(restricted: JointFit, full: JointFit) -> SharingTest:
    """The F-test of a fit against one that shares less."""
    more = full.model.num_coefficients - restricted.model.num_coefficients
    f = _f(np.array(restricted.squares), np.array(full.squares), more, full.dof)
    at = full.model.of(restricted.model, restricted.coefficients)
    slopes = full.model.values_and_slopes(at[None])[1][0]
    cluster = restricted.model.places.cluster
    signs = np.random.default_rng(_SEED).choice([-1.0, 1.0], size=(_DRAWS, int(cluster.max()) + 1))
    noise = signs[:, cluster] * restricted.residuals  # (B, R)
    drawn = _f(_left(noise, restricted.slopes), _left(noise, slopes), more, full.dof)
    return SharingTest(
        shared=tuple(name for name in CONSTANTS if name in restricted.model.shared),
        f=float(f),
        dof=(more, full.dof),
        p=float(stats.f.sf(f, more, full.dof)),
        p_clusters=float((1 + (drawn >= f).sum()) / (1 + _DRAWS)),
    )


def _f(restricted: Floats, full: Floats, more: int, dof: int) -> Floats:
    return np.maximum(restricted - full, 0.0) / more / (full / dof)


def _left(noise: Floats, slopes: Floats) -> Floats:
    """Sum of squares of noise (B, R) after a linear fit of slopes (R, K): (B,)."""
    basis = np.linalg.qr(slopes)[0]
    return ((noise - noise @ basis @ basis.T) ** 2).sum(1)
