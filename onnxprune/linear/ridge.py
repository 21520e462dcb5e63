"""Solve: ridge least squares with an intercept, from moments. Numpy and scipy only.

For inputs ``x`` and targets ``y`` with second moments ``C`` (centred), the weights
``W = W0 + (C_yx - W0 C_xx) (C_xx + lambda I)^-1`` with intercept ``mean(y) - W mean(x)``
minimise the squared error plus ``lambda`` times the squared distance from ``W0``. With a
support per output row the same is solved on each row's inputs (the joint form of the update of
Optimal Brain Compression, arXiv 2208.11580; for channels see arXiv 1707.06168, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from onnxprune.arrays import F64, I64, Bool
from onnxprune.linear.blas import one_thread
from onnxprune.linear.moments import Moments, damping_of

ROW_WIDTH = 1024
"""Support size up to which every row gets an exact solve of its own."""

CG_STEPS, WARM_STEPS = 60, 15
"""Steps of conjugate gradients for wider ones, and from near the result."""


def ridge(moments: Moments, old: F64, relative: float, support: Bool | None = None) -> F64:
    """Return the weights ``float64 [outputs, width]`` (see the module).

    Args:
        moments: of the rows.
        old: ``W0``, ``float64 [outputs, width]``.
        relative: lambda as a multiple of the mean variance of the inputs.
        support: ``bool [outputs, width]``, weights that may differ from zero; default all.
    """
    xx, yx = moments.centred()
    damping = moments.damping(relative)
    if damping == 0.0:
        return old.copy() if support is None else old * support
    if support is None:
        return old + Inverse(xx, damping)(yx - old @ xx)
    old = old * support
    return old + _solve_rows(xx, (yx - old @ xx) * support, support, damping)


def damped_inverse(covariance: F64, relative: float) -> F64:
    """Return the inverse of a damped covariance, ``float64 [width, width]``.

    Args:
        covariance: ``float64 [width, width]``.
        relative: lambda as a multiple of the mean variance of the inputs; 1 where none varies.
    """
    added = damping_of(np.diagonal(covariance), relative) or 1.0
    damped = _damped(covariance, added)
    try:
        np.linalg.cholesky(damped)
        return np.asarray(np.linalg.inv(damped), dtype=np.float64)
    except np.linalg.LinAlgError:  # rounding made it indefinite
        values, vectors = np.linalg.eigh(damped)
        return np.asarray((vectors / np.maximum(values, added)) @ vectors.T)


class Inverse:
    """The inverse ``(xx + damping I)^-1``, on the support of each row where there is one.

    Args:
        xx: ``float64 [width, width]``, a covariance.
        damping: lambda, more than 0.
        support: ``bool [rows, width]``; a factor is kept for every row.
    """

    def __init__(self, xx: F64, damping: float, support: Bool | None = None) -> None:
        self._rows = None
        if support is None:
            self._apply = _factor(_damped(xx, damping), damping)
        else:
            self._rows = list(_row_factors(xx, damping, support))

    @classmethod
    def of(cls, moments: Moments, relative: float, support: Bool | None = None) -> Inverse:
        """Return that of the covariance of the inputs of a layer, which vary.

        Args:
            moments: of its inputs.
            relative: lambda as a multiple of their mean variance.
            support: see the class.
        """
        return cls(moments.centred()[0], moments.damping(relative), support)

    def __call__(self, gap: F64) -> F64:
        """Return ``gap (xx + damping I)^-1``, ``float64 [rows, width]``.

        Where there is a support, the result is zero outside of it, and the gap does not count.
        """
        return self._apply(gap) if self._rows is None else _applied(self._rows, gap)


Factor = Callable[[F64], F64]
"""Multiplies rows, or one row, by an inverse."""


def _damped(xx: F64, damping: float) -> F64:
    result = xx.copy()
    result.flat[:: len(xx) + 1] += damping
    return result


def _row_factors(xx: F64, damping: float, support: Bool) -> Iterator[tuple[int, I64, Factor]]:
    """Yield the rows that have a support, what it is, and the inverse on it."""
    damped = _damped(xx, damping)
    for row in np.flatnonzero(support.any(axis=1)):
        own = np.flatnonzero(support[row])
        yield int(row), own, _factor(damped.take(own, axis=0).take(own, axis=1), damping)


def _applied(factors: Iterable[tuple[int, I64, Factor]], gap: F64) -> F64:
    result = np.zeros_like(gap)
    with one_thread():  # of rows, which are small
        for row, own, apply in factors:
            result[row, own] = apply(gap[row, own])
    return result


def _factor(damped: F64, damping: float) -> Factor:
    """Return what multiplies rows by the inverse of a damped covariance, which is overwritten.

    LAPACK is called directly: where every row has a support of its own, the matrices are so
    small that what :mod:`scipy.linalg` puts around the calls takes as long as they do.
    """
    from scipy.linalg.lapack import dpotrf, dpotrs

    diagonal = damped.diagonal().copy()
    factor, failed = dpotrf(damped.T, lower=1, clean=0, overwrite_a=1)
    if failed:  # rounding made it indefinite: give up directions without variance
        below = np.tril(damped, -1)  # the triangle that was not overwritten
        values, vectors = np.linalg.eigh(below + below.T + np.diag(diagonal - damping))
        scaled = vectors / (np.maximum(values, 0.0) + damping)
        return lambda gap: gap @ scaled @ vectors.T
    return lambda gap: np.asarray(dpotrs(factor, gap.T, lower=1)[0].T, dtype=np.float64)


def ridge_rows(old: F64, xx: F64, support: Bool, damping: float, start: F64 | None = None) -> F64:
    """Refit rows on their supports to their own full outputs.

    Args:
        old: ``float64 [outputs, width]``.
        xx: ``float64 [width, width]``, covariance of the inputs.
        support: ``bool [outputs, width]``.
        damping: lambda.
        start: rows near the result, likewise, from where a few steps come close enough; None
            to solve exactly.
    """
    kept, gap = old * support, (old * ~support) @ xx
    if start is None:
        return kept + _solve_rows(xx, gap * support, support, damping)
    moved = start * support - kept
    left = (gap - moved @ xx - damping * moved) * support
    return kept + moved + _descend(xx, left, support, damping, WARM_STEPS)


def _solve_rows(xx: F64, gap: F64, support: Bool, damping: float) -> F64:
    """Return ``gap (xx + damping I)^-1`` on the support of each row."""
    sizes = support.sum(axis=1)
    if sizes.max(initial=0) > ROW_WIDTH and len(gap) > 8:
        return _descend(xx, gap, support, damping, CG_STEPS)
    return _applied(_row_factors(xx, damping, support), gap)


def _descend(xx: F64, gap: F64, support: Bool, damping: float, steps: int) -> F64:
    """Solve all rows at once by conjugate gradients on their supports."""
    scale = 1.0 / (np.diagonal(xx).clip(0.0) + damping)
    x, r = np.zeros_like(gap), gap.copy()
    z = r * scale
    p, rz = z.copy(), np.einsum("od,od->o", r, z)
    start = rz.copy()
    for _ in range(steps):
        if not (rz > 1e-12 * start).any():
            break
        q = (p @ xx + damping * p) * support
        curvature = np.einsum("od,od->o", p, q)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(curvature > 0, rz / curvature, 0.0)[:, None]
        x += step * p
        r -= step * q
        z = r * scale
        new = np.einsum("od,od->o", r, z)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = z + np.where(rz > 0, new / rz, 0.0)[:, None] * p
        rz = new
    return x
