"""Score: how much each channel or weight matters. Numpy only.

A criterion is one function of *evidence*: the magnitude of a weight (or of all weights that
belong to a channel), and the F statistic and the root mean square of the activation it
multiplies. To add one, write it and register it in :data:`CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, Array
from onnxprune.errors import CalibrationError
from onnxprune.measure.statistics import ActivationStats, f_statistic, is_defined
from onnxprune.plans.choices import METRICS
from onnxprune.structure.structure import Point, Structure

F_POWER_WEIGHTS = 0.5
F_POWER_CHANNELS = 1.0
"""Powers of F with the magnitude."""

F_POWER_ERROR = 0.1
"""Power of F with the error that remains; chosen, like those above, on training data (see
benchmarks/README.md)."""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at; arrays that broadcast to one shape.

    Attributes:
        magnitude: absolute weights.
        f: power of the F statistic of the activation that the weight multiplies, finite.
        rms: root mean square of that activation; ones unless the criterion asks for it.
        rng: for criteria that draw.
        error: the squared error that remains when the weight or channel goes and the others
            make up for it as well as they can, on the scale of the model's outputs; None where
            that was not measured.
    """

    magnitude: F64
    f: F64
    rms: F64
    rng: np.random.Generator
    error: F64 | None = None


def _f_magnitude(e: Evidence) -> F64:
    return e.f * (e.magnitude if e.error is None else e.error)


def _reconstruction(e: Evidence) -> F64:
    return e.magnitude if e.error is None else e.error


def _f(e: Evidence) -> F64:
    return e.f + 0.0 * e.magnitude


def _magnitude(e: Evidence) -> F64:
    return e.magnitude


def _activation(e: Evidence) -> F64:
    return e.magnitude * e.rms


def _random(e: Evidence) -> F64:
    return e.rng.random(e.magnitude.shape)


CRITERIA: dict[str, Callable[[Evidence], F64]] = {
    "f-magnitude": _f_magnitude,
    "f": _f,
    "magnitude": _magnitude,
    "activation": _activation,
    "reconstruction": _reconstruction,
    "random": _random,
}
"""Scoring functions (higher = keep); :data:`onnxprune.plans.choices.METRICS` says what they look
at."""


class Scorer:
    """Scores the channels or the weights of one model with one criterion.

    Args:
        structure: the traced model.
        weights: values of the weight tensors by name.
        stats: activation statistics by point.
        metric: a key of :data:`CRITERIA`.
        seed: of the random generator.

    Raises:
        CalibrationError: if the metric looks at F, and the samples are too few for it.
    """

    def __init__(
        self,
        structure: Structure,
        weights: Mapping[str, Array],
        stats: Mapping[Point, ActivationStats],
        *,
        metric: str,
        seed: int,
    ) -> None:
        self._structure = structure
        self._weights = weights
        self._stats = stats
        self._criterion, self._score = METRICS[metric], CRITERIA[metric]
        self._seed = seed
        if self._criterion.needs_labels:
            for point, found in stats.items():
                _require_f(point, found)

    def _f(self, point: Point, size: int, power: float) -> F64:
        if not self._criterion.needs_labels or point not in self._stats:
            return np.ones(size)
        f = f_statistic(self._stats[point])
        finite = f[np.isfinite(f)]
        capped = np.minimum(f, finite.max() if len(finite) and finite.max() > 0 else 1.0)
        result: F64 = capped**power
        return result

    def _rms(self, point: Point, size: int) -> F64:
        if not self._criterion.needs_rms or point not in self._stats:
            return np.ones(size)
        return self._stats[point].rms()

    def _relative_f(self, point: Point, size: int, power: float) -> F64:
        """Return F to its power for errors, 1 on average over a point: errors keep their scale."""
        f = self._f(point, size, power)
        return _divided(f, float(f.mean()))

    def score_weights(self, errors: Mapping[str, F64] | None = None) -> dict[str, F64]:
        """Score every weight, ``float64`` of the tensor's shape, by tensor name.

        Scores of a tensor that several nodes use are added up. To make layers comparable, a
        tensor's scores are divided by their root mean square, unless they are errors.

        Args:
            errors: for each tensor the error that each weight leaves, if that was measured;
                for a tensor that is missing it is taken to go with the squared weights.
        """
        scores: dict[str, F64] = {}
        rng = np.random.default_rng(self._seed)  # so that the order of calls decides nothing
        typical = float(np.median([e.sum() for e in errors.values()])) if errors else 1.0
        for weight in self._structure.weights:
            size = int(weight.channel_of.max()) + 1
            magnitude = np.abs(self._weights[weight.tensor].astype(np.float64))
            rms = self._rms(weight.point, size)[weight.channel_of]
            if errors is None:
                f = self._f(weight.point, size, F_POWER_WEIGHTS)[weight.channel_of]
                score = np.asarray(self._score(Evidence(magnitude, f, rms, rng)))
                if self._criterion.per_layer:
                    score = _divided(score, float(np.sqrt(np.mean(score**2))))
            else:
                f = self._relative_f(weight.point, size, F_POWER_ERROR)[weight.channel_of]
                error = errors.get(weight.tensor)
                if error is None:
                    error = typical * _divided(magnitude**2, float((magnitude**2).sum()))
                evidence = Evidence(magnitude, f, rms, rng, error)
                score = np.asarray(self._score(evidence))
            scores[weight.tensor] = scores.get(weight.tensor, 0.0) + score
        return scores

    def score_unit_errors(self, errors: F64) -> F64:
        """Score every unit by the error that it leaves, ``float64 [units]``.

        F is that where the unit is consumed, its mean over a consumer's channels set to 1.

        Args:
            errors: ``float64 [units]``.
        """
        f, rms = self._unit_evidence(lambda p, size: self._relative_f(p, size, F_POWER_ERROR))
        magnitude, rng = np.ones(len(errors)), np.random.default_rng(self._seed)
        return np.asarray(self._score(Evidence(magnitude, f, rms, rng, errors)))

    def score_units(self) -> F64:
        """Score every unit, ``float64 [units]``.

        A unit meets several weight axes: the filters that produce its channels and the
        weights that consume them. On each axis its magnitude is the root mean square of its
        slice, its F the mean over its channels where they are consumed. The criterion's scores
        are divided by the largest on the axis and averaged over all places of the unit.
        """
        structure, rng = self._structure, np.random.default_rng(self._seed)
        f, rms = self._unit_evidence(lambda p, size: self._f(p, size, F_POWER_CHANNELS))
        total, count = np.zeros(len(structure.units)), np.zeros(len(structure.units))
        for weight in structure.weights:
            values = self._weights[weight.tensor].astype(np.float64) ** 2
            for axis, labels in weight.axes.items():
                index, unit = structure.units.atoms(labels)
                if not len(unit):
                    continue
                others = tuple(k for k in range(values.ndim) if k != axis)
                magnitude = np.sqrt(values.mean(axis=others))[index]
                score = self._score(Evidence(magnitude, f[unit], rms[unit], rng))
                if self._criterion.per_layer:
                    score = _divided(score, float(score.max()))
                np.add.at(total, unit, score)
                np.add.at(count, unit, 1.0)
        return total / np.maximum(count, 1.0)

    def _unit_evidence(self, f_of: Callable[[Point, int], F64]) -> tuple[F64, F64]:
        """Average the F statistic and the rms of a unit's channels over its consumers."""
        units = self._structure.units
        f, rms, count = (np.zeros(len(units)) for _ in range(3))
        seen: set[Point] = set()
        for weight in self._structure.weights:
            if weight.data_labels is None or weight.point in seen:
                continue
            seen.add(weight.point)
            index, unit = units.atoms(weight.data_labels)
            size = len(weight.data_labels)
            np.add.at(f, unit, f_of(weight.point, size)[index])
            np.add.at(rms, unit, self._rms(weight.point, size)[index])
            np.add.at(count, unit, 1.0)
        unseen = count == 0
        count[unseen] = 1.0
        f, rms = f / count, rms / count
        for values in (f, rms):
            values[unseen] = np.median(values[~unseen]) if (~unseen).any() else 1.0
        return f, rms


def _require_f(point: Point, stats: ActivationStats) -> None:
    """Make sure that a point has an F statistic."""
    samples, classes = int(stats.count.sum()), len(stats.count)
    if not is_defined(samples, classes):
        usable = [name for name, c in METRICS.items() if not c.needs_labels]
        raise CalibrationError(
            f"the F statistic of '{point[0]}' is undefined: it needs samples of at least two "
            f"classes and more samples than classes; got {samples} samples of {classes} classes "
            f"to fit on; give more of each class, or use one of the metrics {', '.join(usable)}"
        )


def _divided(scores: F64, scale: float) -> F64:
    return scores / scale if scale > 0 else scores


def weight_points(structure: Structure) -> list[Point]:
    """Return the points whose statistics scoring and recovery need."""
    return list(dict.fromkeys(w.point for w in structure.weights))
