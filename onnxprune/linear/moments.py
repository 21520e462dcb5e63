"""Moments: sums of products of what layers read, from which they are fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.arrays import F64, Array

CHECK_EVERY = 5
"""One sample of so many is not fitted on, but decides how far to go."""


@dataclass(frozen=True)
class Enough:
    """How many rows are enough for a layer, where the samples have so many.

    Attributes:
        least: rows for any layer.
        each_input: rows for each input of an output.
    """

    least: int
    each_input: int

    def of_each(self, samples: int, width: int, share: float = 1.0) -> int:
        """Return how many rows to draw from each of so many samples.

        Args:
            samples: how many there are.
            width: inputs of each output.
            share: multiplies the number of all rows.
        """
        wanted = int(share * max(self.least, self.each_input * width))
        return max(1, -(-wanted // samples))


def damping_of(variance: F64, relative: float) -> float:
    """Return lambda; 0 where no input varies.

    Args:
        variance: of the inputs, ``float64 [width]``; what rounding made negative does not count.
        relative: lambda as a multiple of the mean variance of the inputs that vary.
    """
    live = variance > 0
    return relative * float(variance[live].mean()) if live.any() else 0.0


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
        """Return the moments of no rows, with shifts ``x [width]`` and ``y [outputs]``."""
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
        names = ("count", "x", "y", "xx", "yx", "yy")
        return replace(self, **{n: getattr(self, n) + getattr(other, n) for n in names})

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

    @property
    def target_variance(self) -> float:
        """The variance of the targets, summed over outputs."""
        n = max(self.count, 1)
        return float(np.maximum(self.yy / n - (self.y / n) ** 2, 0).sum())

    def centred(self) -> tuple[F64, F64]:
        """Return the covariances ``C_xx [width, width]`` and ``C_yx [outputs, width]``."""
        n = max(self.count, 1)
        xx = self.xx / n - np.outer(self.x, self.x) / n**2
        return xx, self.yx / n - np.outer(self.y, self.x) / n**2

    def damping(self, relative: float) -> float:
        """Return lambda, given as a multiple of the mean variance of the inputs; 0 without any."""
        n = max(self.count, 1)
        return damping_of(np.diagonal(self.xx) / n - (self.x / n) ** 2, relative)

    def intercept(self, weights: F64) -> F64:
        """Return ``mean(y) - W mean(x)``, ``float64 [outputs]``."""
        result: F64 = self.y / max(self.count, 1) + self.shift_y - weights @ self.mean
        return result

    def error(self, weights: F64, bias: F64) -> float:
        """Return the mean squared error of ``W x + b``, summed over outputs.

        Args:
            weights: ``W``, ``float64 [outputs, width]``.
            bias: ``b``, ``float64 [outputs]``.
        """
        n = max(self.count, 1)
        offset = weights @ self.shift_x + bias - self.shift_y
        fitted = np.einsum("od,od->o", weights @ self.xx, weights)
        cross = np.einsum("od,od->o", weights, self.yx)
        value = (
            self.yy + fitted - 2 * cross + 2 * offset * (weights @ self.x - self.y)
        ) / n + offset**2
        return float(value.sum())
