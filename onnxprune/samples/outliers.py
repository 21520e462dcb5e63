"""Outliers: samples whose values are out of all proportion, so that nothing is learned from them.

Least squares weighs a sample by the square of its size: one that is a thousand times larger than
the others counts as much as a million of them, and a layer is fitted to it alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune.arrays import F64, I64, Bool
from onnxprune.samples.dataset import Batch

FACTOR = 100.0
"""How many times larger than the typical sample an outlier is at least."""

DEVIATIONS = 6.0
"""How many standard deviations of the logarithm it is away at least: where sizes are spread over
orders of magnitude by nature, as those of sounds or amounts are, more is natural."""

MOST = 0.1
"""Share of outliers beyond which they are not exceptions, but what the data is like."""

LEAST_SAMPLES = 10
"""Among fewer samples nothing is typical."""

_NORMAL = 1.4826  # standard deviation of a normal distribution over its median deviation


def find_outliers(batches: Iterable[Batch], rows: I64) -> tuple[Bool, list[str]]:
    """Find the samples whose largest absolute value is far beyond the typical one.

    Inputs of integers are passed over. The typical sample is the median; samples of nothing but
    zeros do not count for it.

    Args:
        batches: the samples, streamed once.
        rows: ``int64 [samples]``, their numbers for the user.

    Returns:
        ``bool [samples]``, true for those to leave out; and warnings.
    """
    peaks: dict[str, list[F64]] = {}
    for batch in batches:
        for name, values in batch.feeds.items():
            if values.dtype.kind == "f":
                flat = values.reshape(len(values), -1)
                largest = np.maximum(flat.max(axis=1), -flat.min(axis=1))
                peaks.setdefault(name, []).append(largest.astype(np.float64))
    found = np.zeros(len(rows), dtype=np.bool_)
    warnings: list[str] = []
    for name, parts in peaks.items():
        sizes = np.concatenate(parts)
        far, typical = _far(sizes)
        if not far.any():
            continue
        what = (
            f"{np.count_nonzero(far)} of {len(rows)} calibration samples have values of up to "
            f"{sizes.max():.3g} in input '{name}', where {typical:.3g} is typical"
        )
        if far.mean() > MOST:
            warnings.append(f"{what}; too many to leave out, they dominate: check the data")
        else:
            found |= far
            warnings.append(f"{what}; they were left out, the first is row {rows[far.argmax()]}")
    return found, warnings


def _far(sizes: F64) -> tuple[Bool, float]:
    """Return which sizes are far beyond the typical one, and the typical one."""
    far = np.zeros(len(sizes), dtype=np.bool_)
    if np.count_nonzero(sizes) < LEAST_SAMPLES:
        return far, 0.0
    logs = np.log(sizes, out=np.full(len(sizes), -np.inf), where=sizes > 0)
    nonzero = logs[sizes > 0]
    typical = float(np.median(nonzero))
    spread = _NORMAL * float(np.median(np.abs(nonzero - typical)))
    return logs - typical > max(np.log(FACTOR), DEVIATIONS * spread), float(np.exp(typical))
