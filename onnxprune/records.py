"""Records: measurements as plain arrays, and back, for the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from onnxprune.accuracy import Accuracy
from onnxprune.calibrate import Point
from onnxprune.labels import Array
from onnxprune.selection import Sensitivity
from onnxprune.statistics import ActivationStats

Arrays = Mapping[str, Array]


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


def from_sensitivities(found: Sequence[Sensitivity]) -> Arrays:
    """Return trials as arrays, one entry for each trial."""
    trials = [
        (s.group, removed, divergence)
        for s in found
        for removed, divergence in zip(s.removed, s.divergence, strict=True)
    ]
    return {
        "group": np.array([group for group, _, _ in trials], dtype=np.str_),
        "removed": np.array([removed for _, removed, _ in trials], dtype=np.int64),
        "divergence": np.array([divergence for _, _, divergence in trials], dtype=np.float64),
    }


def to_sensitivities(arrays: Arrays) -> list[Sensitivity]:
    """Invert :func:`from_sensitivities`."""
    trials: dict[str, list[tuple[int, float]]] = {}
    columns = (arrays[name].tolist() for name in ("group", "removed", "divergence"))
    for group, removed, divergence in zip(*columns, strict=True):
        trials.setdefault(group, []).append((removed, divergence))
    return [
        Sensitivity(group, tuple(r for r, _ in own), tuple(d for _, d in own))
        for group, own in trials.items()
    ]
