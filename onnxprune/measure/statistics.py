"""Per-class activation statistics, and what is computed from them. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.arrays import F64, I64


@dataclass(frozen=True)
class ActivationStats:
    """Moments of ``C`` channels for each of the ``K`` classes that occur, over samples.

    A channel's value for a sample is its mean over all positions, so that samples stay
    independent. ``square`` is the sum over samples of the mean squared activation, where it
    was gathered. Classes without samples take no memory.

    Attributes:
        labels: ``int64 [K]``, the classes that occur, ascending.
        count: ``int64 [K]``, samples of each of them, at least 1.
        mean: ``float64 [K, C]``.
        m2: ``float64 [C]``, sums of squared deviations from the mean of a sample's own class.
        square: ``float64 [C]`` or None.
    """

    labels: I64
    count: I64
    mean: F64
    m2: F64
    square: F64 | None = None

    @classmethod
    def of(cls, values: F64, labels: I64, square: F64 | None = None) -> ActivationStats:
        """Return the statistics of ``values [N, C]`` with ``labels [N]``."""
        total = None if square is None else square.sum(axis=0)
        if not len(labels):
            return replace(cls.empty(values.shape[1]), square=total)
        order = np.argsort(labels, kind="stable")
        present, starts, count = np.unique(labels[order], return_index=True, return_counts=True)
        ordered = values[order]
        means = np.add.reduceat(ordered, starts, axis=0) / count[:, None]
        ordered -= np.repeat(means, count, axis=0)
        ordered *= ordered
        return cls(present, count, means, ordered.sum(axis=0), total)

    @classmethod
    def empty(cls, channels: int, squares: bool = False) -> ActivationStats:
        """Return the statistics of no samples."""
        none, zeros = np.zeros(0, dtype=np.int64), np.zeros(channels)
        return cls(none, none, np.zeros((0, channels)), zeros, zeros if squares else None)

    def merge(self, other: ActivationStats) -> ActivationStats:
        """Combine the statistics of disjoint samples; associative (Chan et al., 1979)."""
        labels = np.union1d(self.labels, other.labels)
        ours, theirs = (np.searchsorted(labels, part.labels) for part in (self, other))
        before = np.zeros(len(labels), dtype=np.int64)
        before[ours] = self.count
        count = before.copy()
        count[theirs] += other.count
        mean = np.zeros((len(labels), self.mean.shape[1]))
        mean[ours] = self.mean
        delta = other.mean - mean[theirs]
        share = other.count / count[theirs]
        mean[theirs] += delta * share[:, None]
        m2 = self.m2 + other.m2 + (before[theirs] * share) @ delta**2
        square = None
        if self.square is not None and other.square is not None:
            square = self.square + other.square
        return ActivationStats(labels, count, mean, m2, square)

    def columns(self, start: int, stop: int) -> ActivationStats:
        """Return the statistics of a range of channels."""
        square = None if self.square is None else self.square[start:stop]
        own = slice(start, stop)
        return ActivationStats(self.labels, self.count, self.mean[:, own], self.m2[own], square)

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


def is_defined(samples: int, classes: int) -> bool:
    """Whether there is an F statistic of so many samples of so many classes."""
    return 2 <= classes < samples


def f_statistic(stats: ActivationStats) -> F64:
    """One-way analysis of variance of each channel over the classes that are present.

    ``F = [sum_k n_k (mu_k - mu)^2 / (K - 1)] / [sum_k m2_k / (N - K)]``. A channel without any
    variance has F = 0; one that varies between classes only has F = inf. Where the F
    statistic is undefined (one class, or not more samples than classes) it is NaN.

    Returns:
        ``float64 [C]``.
    """
    count, mean = stats.count, stats.mean
    classes, samples = len(count), int(count.sum())
    if not is_defined(samples, classes):
        return np.full(mean.shape[1], np.nan)
    between = (count @ (mean - stats.overall_mean()) ** 2) / (classes - 1)
    within = stats.m2 / (samples - classes)
    # Rounding of equal values leaves variances of the order of the square of the precision.
    scale = np.abs(mean).max(axis=0, initial=0.0) ** 2 * 1e-14
    between, within = (
        np.where(between > scale, between, 0.0),
        np.where(within > scale, within, 0.0),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        f = between / within
    return np.where(between == 0.0, 0.0, f)
