"""Moments: sums of products of what layers read, from which they are fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, Array

CHECK_EVERY = 5
"""One sample of so many is not fitted on, but decides how far to go."""


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
        return relative * mean_variance(variance)

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


def mean_variance(variance: F64) -> float:
    """Return the mean of the variances ``float64 [width]`` of inputs that vary; 0 if none does."""
    live = variance > 0
    return float(variance[live].mean()) if live.any() else 0.0
