"""Solve: ridge least squares with an intercept, from moments. Numpy and scipy only.

For inputs ``x`` and targets ``y`` with second moments ``C`` (centred), the weights
``W = W0 + (C_yx - W0 C_xx) (C_xx + lambda I)^-1`` with intercept ``mean(y) - W mean(x)``
minimise the squared error plus ``lambda`` times the squared distance from ``W0``. With a
support per output row the same is solved on each row's inputs (the joint form of the update of
Optimal Brain Compression, arXiv 2208.11580; for channels see arXiv 1707.06168, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, I64, Array, Bool
from onnxprune.blas import one_thread

CHECK_EVERY = 5
"""One sample of so many is not fitted on, but decides how far to go."""

ROW_WIDTH = 1024
"""Support size up to which every row gets an exact solve of its own."""

CG_STEPS, WARM_STEPS = 60, 15
"""Steps of conjugate gradients for wider ones, and from near the result."""


@dataclass
class Moments:
    """Sums of one group of a layer, shifted so that large offsets do not cost precision.

    Attributes:
        shift_x: ``float64 [width]``, subtracted from every input.
        shift_y: ``float64 [outputs]``, likewise.
        count: number of rows.
        x: ``float64 [width]``, sum of inputs.
        y: ``float64 [outputs]``, sum of targets.
        xx: ``float64 [width, width]``, sum of products.
        yx: ``float64 [outputs, width]``.
        yy: ``float64 [outputs]``, sum of squared targets.
    """

    shift_x: F64
    shift_y: F64
    count: int
    x: F64
    y: F64
    xx: F64
    yx: F64
    yy: F64

    @classmethod
    def shifted(cls, x: F64, y: F64) -> Moments:
        """Return the moments of no rows, with these shifts."""
        d, o = len(x), len(y)
        return cls(
            x, y, 0, np.zeros(d), np.zeros(o), np.zeros((d, d)), np.zeros((o, d)), np.zeros(o)
        )

    def add(self, x: Array, y: Array) -> None:
        """Add rows ``x [rows, width]`` with targets ``y [rows, outputs]``.

        Products are formed in the precision of the rows (at least float32), sums in float64;
        see :attr:`finite`.
        """
        dtype = np.promote_types(np.promote_types(x.dtype, y.dtype), np.float32)
        x = x.astype(dtype) - self.shift_x.astype(dtype)
        y = y.astype(dtype) - self.shift_y.astype(dtype)
        self.count += len(x)
        self.x += x.sum(axis=0, dtype=np.float64)
        self.y += y.sum(axis=0, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            self.xx += x.T @ x
            self.yx += y.T @ x
        self.yy += (y.astype(np.float64) ** 2).sum(axis=0)

    def plus(self, other: Moments) -> Moments:
        """Return the moments of both; the shifts must be the same."""
        return Moments(
            self.shift_x,
            self.shift_y,
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.yx + other.yx,
            self.yy + other.yy,
        )

    def about(self, added: F64) -> Moments:
        """Return the moments about zero of the inputs and of the targets without what is added.

        For them no intercept is the best: means count as zero.

        Args:
            added: ``float64 [outputs]``, the intercept that stays.
        """
        sx, sy, n = self.shift_x, self.shift_y - added, self.count
        zeros_x, zeros_y = np.zeros_like(sx), np.zeros_like(sy)
        cross = np.outer(self.x, sx)
        return Moments(
            zeros_x,
            zeros_y,
            n,
            zeros_x,
            zeros_y,
            self.xx + cross + cross.T + n * np.outer(sx, sx),
            self.yx + np.outer(self.y, sx) + np.outer(sy, self.x) + n * np.outer(sy, sx),
            self.yy + 2 * sy * self.y + n * sy**2,
        )

    @property
    def finite(self) -> bool:
        """Whether no sum overflowed."""
        return bool(np.isfinite(self.xx).all() and np.isfinite(self.yx).all())

    @property
    def mean(self) -> F64:
        """The mean of the inputs, ``float64 [width]``."""
        result: F64 = self.x / max(self.count, 1) + self.shift_x
        return result

    def centred(self) -> tuple[F64, F64]:
        """Return the covariances ``C_xx`` and ``C_yx``."""
        n = max(self.count, 1)
        xx = self.xx / n - np.outer(self.x, self.x) / n**2
        return xx, self.yx / n - np.outer(self.y, self.x) / n**2

    def damping(self, relative: float) -> float:
        """Return lambda, given as a multiple of the mean variance of the inputs; 0 without any."""
        n = max(self.count, 1)
        variance = np.maximum(np.diagonal(self.xx) / n - (self.x / n) ** 2, 0.0)
        live = variance > 0
        return relative * float(variance[live].mean()) if live.any() else 0.0

    def intercept(self, weights: F64) -> F64:
        """Return ``mean(y) - W mean(x)``, ``float64 [outputs]``."""
        result: F64 = self.y / max(self.count, 1) + self.shift_y - weights @ self.mean
        return result

    def error(self, weights: F64, bias: F64) -> float:
        """Return the mean squared error of ``W x + b``, summed over outputs."""
        n = max(self.count, 1)
        offset = weights @ self.shift_x + bias - self.shift_y
        fitted = np.einsum("od,od->o", weights @ self.xx, weights)
        cross = np.einsum("od,od->o", weights, self.yx)
        value = (
            self.yy + fitted - 2 * cross + 2 * offset * (weights @ self.x - self.y)
        ) / n + offset**2
        return float(value.sum())


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

    def __call__(self, gap: F64) -> F64:
        """Return ``gap (xx + damping I)^-1``, ``float64 [rows, width]``."""
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
