"""Per-class activation statistics, and what is computed from them. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.labels import F64, I64


@dataclass(frozen=True)
class ActivationStats:
    """Moments of ``C`` channels for each of ``K`` classes, over samples.

    A channel's value for a sample is its mean over all positions, so that samples stay
    independent. ``square`` is the sum over samples of the mean squared activation, where it
    was gathered.

    Attributes:
        count: ``int64 [K]``, samples of each class.
        mean: ``float64 [K, C]``.
        m2: ``float64 [K, C]``, sums of squared deviations from the class mean.
        square: ``float64 [C]`` or None.
    """

    count: I64
    mean: F64
    m2: F64
    square: F64 | None = None

    @classmethod
    def of(
        cls, values: F64, labels: I64, classes: int, square: F64 | None = None
    ) -> ActivationStats:
        """Return the statistics of ``values [N, C]`` with ``labels [N]``."""
        order = np.argsort(labels, kind="stable")
        present, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        result = cls.empty(classes, values.shape[1])
        if len(present):
            ordered = values[order]
            means = np.add.reduceat(ordered, starts, axis=0) / counts[:, None]
            ordered -= np.repeat(means, counts, axis=0)
            ordered *= ordered
            result.count[present] = counts
            result.mean[present] = means
            result.m2[present] = np.add.reduceat(ordered, starts, axis=0)
        total = None if square is None else square.sum(axis=0)
        return cls(result.count, result.mean, result.m2, total)

    @classmethod
    def empty(cls, classes: int, channels: int, squares: bool = False) -> ActivationStats:
        """Return the statistics of no samples."""
        mean, m2 = np.zeros((2, classes, channels))
        square = np.zeros(channels) if squares else None
        return cls(np.zeros(classes, dtype=np.int64), mean, m2, square)

    def merge(self, other: ActivationStats) -> ActivationStats:
        """Combine the statistics of disjoint samples; associative (Chan et al., 1979)."""
        count = self.count + other.count
        share = (other.count / np.maximum(count, 1))[:, None]
        delta = other.mean - self.mean
        weight = self.count[:, None] * share
        square = None
        if self.square is not None and other.square is not None:
            square = self.square + other.square
        return ActivationStats(
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + delta**2 * weight,
            square,
        )

    def columns(self, start: int, stop: int) -> ActivationStats:
        """Return the statistics of a range of channels."""
        square = None if self.square is None else self.square[start:stop]
        return ActivationStats(self.count, self.mean[:, start:stop], self.m2[:, start:stop], square)

    def overall_mean(self) -> F64:
        """Return the mean over all samples, ``float64 [C]``."""
        result: F64 = self.count @ self.mean / max(int(self.count.sum()), 1)
        return result

    def rms(self) -> F64:
        """Return the root mean square over samples and positions, ``float64 [C]``.

        Raises:
            ValueError: if squares were not gathered.
        """
        if self.square is None:
            raise ValueError("the mean squares were not gathered")
        result: F64 = np.sqrt(self.square / max(int(self.count.sum()), 1))
        return result


def f_statistic(stats: ActivationStats) -> F64:
    """One-way analysis of variance of each channel over the classes that are present.

    ``F = [sum_k n_k (mu_k - mu)^2 / (K - 1)] / [sum_k m2_k / (N - K)]``. A channel without any
    variance has F = 0; one that varies between classes only has F = inf. Where the F
    statistic is undefined (one class, or not more samples than classes) it is NaN.

    Returns:
        ``float64 [C]``.
    """
    present = stats.count > 0
    count, mean = stats.count[present], stats.mean[present]
    classes, samples = len(count), int(count.sum())
    if classes < 2 or samples <= classes:
        return np.full(stats.mean.shape[1], np.nan)
    centred = mean - count @ mean / samples
    between = (count @ centred**2) / (classes - 1)
    within = stats.m2[present].sum(axis=0) / (samples - classes)
    # Rounding of equal values leaves variances of the order of the square of the precision.
    scale = np.abs(mean).max(axis=0, initial=0.0) ** 2 * 1e-14
    between, within = (
        np.where(between > scale, between, 0.0),
        np.where(within > scale, within, 0.0),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        f = between / within
    return np.where(between == 0.0, 0.0, f)
