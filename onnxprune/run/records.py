"""Records: measurements as plain arrays, and back, for the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from onnxprune.arrays import Array, Arrays
from onnxprune.measure.accuracy import Accuracy
from onnxprune.measure.statistics import ActivationStats
from onnxprune.structure.structure import Point


def from_stats(stats: Mapping[Point, ActivationStats], points: Sequence[Point]) -> Arrays:
    """Return statistics as arrays, by their place among all points."""
    arrays: dict[str, Array] = {}
    for k, point in enumerate(points):
        if point in stats:
            own = stats[point]
            values = {f.name: getattr(own, f.name) for f in fields(own)}
            arrays |= {f"{k}/{name}": v for name, v in values.items() if v is not None}
    return arrays


def to_stats(arrays: Arrays, points: Sequence[Point]) -> dict[Point, ActivationStats]:
    """Invert :func:`from_stats`."""
    return {
        point: ActivationStats(
            arrays[f"{k}/labels"],
            arrays[f"{k}/count"],
            arrays[f"{k}/mean"],
            arrays[f"{k}/m2"],
            arrays.get(f"{k}/square"),
        )
        for k, point in enumerate(points)
        if f"{k}/count" in arrays
    }


def from_accuracy(accuracy: Accuracy) -> Arrays:
    """Return an accuracy as arrays."""
    return {
        "numbers": np.array([accuracy.value, accuracy.standard_error, accuracy.loss]),
        "per_class": np.array(accuracy.per_class, dtype=np.float64),
        "hits": accuracy.hits,
        "margins": accuracy.margins,
    }


def to_accuracy(arrays: Arrays) -> Accuracy:
    """Invert :func:`from_accuracy`."""
    value, standard_error, loss = arrays["numbers"].tolist()
    hits, margins = arrays["hits"].astype(np.bool_), arrays["margins"]
    per_class = tuple(arrays["per_class"].tolist())
    return Accuracy(value, standard_error, loss, len(hits), per_class, hits=hits, margins=margins)
