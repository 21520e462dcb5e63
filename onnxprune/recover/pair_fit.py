"""Pair fit: fit two layers with a rectifier between them together. Numpy and scipy only.

Least squares layer by layer lets the units that stay between two layers be what they were in the
original. Fewer units do better if they may change. So the squared error of what the second layer
gives, as far as it passes the rectifier behind it (see
:mod:`onnxprune.recover.through_rectifier`), is lowered in the weights of both (the reconstruction
of whole blocks instead of layers: BRECQ, arXiv 2102.05426), by conjugate gradients after Polak and
Ribiere. They are preconditioned as in K-FAC (Martens and Grosse, arXiv 1503.05671): by the inverse
covariance of the inputs of a layer and the curvature in its outputs, of which the diagonal is
enough. The length of a step is that at which the error is least if no unit changes its state; one
that does not lower the error is shortened. Some samples are kept to check: of all points on the
way that with the least error on these is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.arrays import F64, Array, Bool
from onnxprune.linear.moments import Moments
from onnxprune.linear.product import Product
from onnxprune.linear.ridge import Inverse
from onnxprune.recover.through_rectifier import Gap, factors_fit

Map = Callable[..., Iterable[Any]]

STEPS = 5
"""Points that are tried, the start included."""

SHORTER = 1 / 3
"""What a step that leads too far is multiplied by."""

FLOOR = 1e-2
"""Least curvature of a unit, relative to the mean: of units that are hardly ever on."""


@dataclass(frozen=True)
class Half:
    """One layer of a pair.

    Attributes:
        product: the map that its weights define.
        weights: where to start, ``float64 [groups, outputs, width]``.
        bias: likewise, ``float64 [groups * outputs]``.
        moments: of its inputs, for each group.
        relative: lambda as a multiple of the mean variance of the inputs.
        support: weights that may differ from zero, ``bool [groups, outputs, width]``; default all.
    """

    product: Product
    weights: F64
    bias: F64
    moments: Sequence[Moments]
    relative: float
    support: Bool | None = None

    @property
    def usable(self) -> bool:
        """Whether its inputs vary, and the inverses for its rows are small enough."""
        small = self.support is None or factors_fit(self.support)
        return small and all(m.damping(self.relative) > 0 for m in self.moments)


@dataclass(frozen=True)
class _Point:
    """Weights and intercepts of both layers; also a gradient, or a direction, in them.

    The intercepts are those for centred inputs, so that they do not depend on the weights.
    """

    parts: tuple[F64, ...]

    def plus(self, other: _Point, scale: float) -> _Point:
        return _Point(tuple(p + scale * q for p, q in zip(self.parts, other.parts, strict=True)))

    def dot(self, other: _Point) -> float:
        return float(sum((p * q).sum() for p, q in zip(self.parts, other.parts, strict=True)))


@dataclass(frozen=True)
class Sample:
    """Some samples that a pair is fitted on, or checked.

    Attributes:
        x: what the first layer sums over, ``[groups, rows, width]`` (see
            :meth:`onnxprune.linear.product.Product.unfold`).
        gap: what outputs of the second lack, given these, ``[samples, positions, channels]``.
    """

    x: Array
    gap: Gap


def fit_pair(
    first: Half,
    second: Half,
    between: tuple[float, float],
    fitted: Sequence[Sample],
    checked: Sequence[Sample],
    each: Map = map,
) -> tuple[tuple[F64, F64], tuple[F64, F64]]:
    """Lower the error that the outputs of a pair of layers leave.

    Args:
        first: the layer in front.
        second: the layer behind the rectifier.
        between: what passes the rectifier between them, lowest and highest.
        fitted: what to fit on, in blocks that go through both layers one after the other.
        checked: what decides how far to go, likewise.
        each: applies a function to all blocks, and returns the results in their order.

    Returns:
        Weights and bias of the first and of the second layer, as in :class:`Half`.
    """
    problem = _Problem(first, second, between, each)
    here = reached = chosen = problem.start
    least, best, step, short = np.inf, np.inf, 0.0, 0
    last = direction = None
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(STEPS):
            error, states = problem.at(here, fitted)
            if not error < best:
                short += 1
                if direction is None or short > 2:
                    break
                step *= SHORTER
                here = reached.plus(direction, step)
                continue
            reached, best, short = here, error, 0
            check, _ = problem.at(here, checked)
            if check < least:
                least, chosen = check, here
            slope = problem.slope(here, fitted, states)
            steepest = problem.preconditioned(here, slope, states)
            turn = 0.0
            if last is not None:
                turn = max((slope.dot(steepest) - last[0].dot(steepest)) / last[1], 0.0)
            direction = steepest if direction is None else steepest.plus(direction, turn)
            last = slope, slope.dot(steepest)
            step = problem.length(here, direction, fitted, states)
            if not (np.isfinite(step) and step > 0 and last[1] > 0):
                break
            here = reached.plus(direction, step)
    return problem.layers(chosen)


@dataclass(frozen=True)
class _State:
    """What the layers do at a point with some samples.

    Attributes:
        hidden: what the second layer sums over, ``[groups, rows, width]`` (see
            :meth:`onnxprune.linear.product.Product.unfold`).
        on: where the rectifier between passes what the first layer gives, ``bool [samples,
            positions, channels]``.
        left: what the outputs of the second layer lack, ``[samples, positions, channels]``.
    """

    hidden: Array
    on: Bool
    left: Array


class _Problem:
    """The error of a pair of layers as a function of their weights."""

    def __init__(
        self, first: Half, second: Half, between: tuple[float, float], each: Map = map
    ) -> None:
        self._first, self._second = first.product, second.product
        self._between, self._map = between, each
        halves = (first, second)
        self._means = [np.stack([m.mean for m in half.moments]) for half in halves]
        self._inverses = [
            [
                Inverse.of(m, half.relative, None if half.support is None else half.support[g])
                for g, m in enumerate(half.moments)
            ]
            for half in halves
        ]
        (w1, c1), (w2, c2) = (
            (half.weights, half.bias + _on_mean(half.weights, mean))
            for half, mean in zip(halves, self._means, strict=True)
        )
        self.start = _Point((w1, c1, w2, c2))

    def layers(self, point: _Point) -> tuple[tuple[F64, F64], tuple[F64, F64]]:
        """Return weights and bias of both layers, as in :class:`Half`."""
        w1, c1, w2, c2 = point.parts
        m1, m2 = self._means
        return (w1, c1 - _on_mean(w1, m1)), (w2, c2 - _on_mean(w2, m2))

    def at(self, point: _Point, samples: Sequence[Sample]) -> tuple[float, list[_State]]:
        """Run both layers; return the mean squared error as well."""
        (w1, b1), (w2, b2) = self.layers(point)
        low, high = self._between

        def run(sample: Sample) -> tuple[float, _State]:
            units = _affine(self._first, sample.x, w1, b1)
            on = (units > low) & (units < high)
            hidden = self._second.unfold(np.clip(units, low, high, out=units))
            left = sample.gap(_affine(self._second, hidden, w2, b2))
            return _product(left, left), _State(hidden, on, left)

        errors, states = zip(*self._map(run, samples), strict=True)
        return sum(errors) / _rows(states), list(states)

    def slope(self, point: _Point, samples: Sequence[Sample], states: Sequence[_State]) -> _Point:
        """Return the steepest descent at a point, halved."""
        m1, m2 = self._means

        def part(sample: Sample, state: _State) -> _Point:
            back = self._second.backward(state.left, point.parts[2])
            back *= state.on
            w1, c1 = _centred(self._first.correlation(back, sample.x), back, m1)
            w2, c2 = _centred(self._second.correlation(state.left, state.hidden), state.left, m2)
            return _Point((w1, c1, w2, c2))

        parts = [p.parts for p in self._map(part, samples, states)]
        return _Point(tuple(sum(values) / _rows(states) for values in zip(*parts, strict=True)))

    def preconditioned(self, point: _Point, slope: _Point, states: Sequence[_State]) -> _Point:
        """Divide a slope by what is taken for the curvature."""
        w1, c1, w2, c2 = slope.parts
        second = point.parts[2]
        often = sum(state.on.sum(axis=(0, 1)) for state in states) / _rows(states)
        groups, units = len(second), len(often) // len(second)
        energy = (second**2).sum(axis=1).reshape(groups, -1, units).sum(axis=1).ravel()
        curvature = energy * often
        curvature += FLOOR * curvature.mean() + 1e-30
        scaled = self._whitened(0, w1) / curvature.reshape(*w1.shape[:2], 1)
        return _Point((scaled, c1 / curvature, self._whitened(1, w2), c2))

    def length(
        self,
        point: _Point,
        direction: _Point,
        samples: Sequence[Sample],
        states: Sequence[_State],
    ) -> float:
        """Return how far to go so that the error is least if no unit changes its state."""
        (v1, d1), (v2, d2) = self.layers(direction)

        def part(sample: Sample, state: _State) -> tuple[float, float]:
            moved = _affine(self._first, sample.x, v1, d1)
            moved *= state.on
            change = _affine(self._second, state.hidden, v2, d2)
            change += self._second.forward(self._second.unfold(moved), point.parts[2])
            gain = _product(state.left, change)
            change *= state.left != 0  # what the rectifier does not pass costs nothing
            return gain, _product(change, change)

        gains, curvatures = zip(*self._map(part, samples, states), strict=True)
        return float(sum(gains) / max(sum(curvatures), 1e-30))

    def _whitened(self, which: int, weights: F64) -> F64:
        inverses = self._inverses[which]
        return np.stack([inverse(w) for inverse, w in zip(inverses, weights, strict=True)])


def _affine(product: Product, x: Array, weights: F64, bias: F64) -> Array:
    result = product.forward(x, weights)
    result += bias.astype(result.dtype)
    return result


def _product(a: Array, b: Array) -> float:
    return float(np.einsum("spo,spo->", a, b, dtype=np.float64))


def _rows(states: Sequence[_State]) -> int:
    """Return how many rows the outputs have."""
    return sum(int(np.prod(state.left.shape[:2])) for state in states)


def _centred(correlation: F64, left: Array, mean: F64) -> tuple[F64, F64]:
    """Return a correlation as with centred inputs, and the sum of what they correlate with."""
    total = left.sum(axis=(0, 1), dtype=np.float64)
    return correlation - total.reshape(len(mean), -1, 1) * mean[:, None], total


def _on_mean(weights: F64, mean: F64) -> F64:
    """Return what weights give for the mean of their inputs, ``float64 [groups * outputs]``."""
    return np.asarray(np.einsum("gow,gw->go", weights, mean).ravel())
