"""Weight damage: zero single weights in rounds, and let the others make up for them.

The error that each weight would add comes from second moments
(:mod:`onnxprune.decide.second_moments`), the scale that makes layers comparable from a few trials
(:mod:`onnxprune.measure.divergence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat

import numpy as np

from onnxprune.arrays import F64, Array, Bool
from onnxprune.decide.channel_damage import Measured
from onnxprune.decide.elimination import output_energy
from onnxprune.decide.second_moments import from_rows, to_rows
from onnxprune.linear.layer import Layer
from onnxprune.linear.moments import damping_of
from onnxprune.linear.ridge import damped_inverse, ridge_rows

DENSITY_STEP = 0.93
"""Weights leave in rounds, and this share of them stays after each. The smaller the rounds, the
better the choice."""

TRIAL_DENSITIES = (0.5, 0.25)
"""Shares of a layer's weights that stay in its trials."""

TINY = 1e-12
"""Divergences and relative errors below are taken for this."""


_Group = tuple[F64, F64, F64, float]
"""Refitted weights of a group, their worth, the old weights and the energy of their outputs."""


class Thinning:
    """The layers of a model whose single weights may become zero.

    Args:
        measured: the model with its moments.
        nonzero: where each tensor that may be changed is not zero already.
    """

    def __init__(self, measured: Measured, nonzero: Mapping[str, Bool]) -> None:
        self._measured = measured
        self._nonzero = nonzero
        self._layers = [la for la in measured.layers if la.weight in nonzero and not la.shared]
        self._diagonals = {
            la.node: [
                np.diagonal(damped_inverse(m.covariance, WORTH_DAMPING))
                for m in measured.moments[la.node]
            ]
            for la in self._layers
        }

    def scales(self, progress: Callable[[int], None] = lambda _: None) -> dict[str, float]:
        """Return how far the outputs move for a relative error of 1 in a layer, by tensor.

        Each layer is thinned out alone to :data:`TRIAL_DENSITIES`; the scale is the geometric
        mean of the ratio of the outputs' divergence to the error of the refitted layer.
        """
        if not self._layers:
            return {}
        trials: list[dict[str, Array]] = []
        errors: list[float] = []
        for layer in self._layers:
            left = self._nonzero[layer.weight]
            groups = self._groups(layer, left)
            for density in TRIAL_DENSITIES:
                worth = np.where(left, self._worth(layer, groups), -1.0)
                count = max(1, int(density * left.size))
                left = worth >= np.partition(worth.ravel(), -count)[-count]
                groups = self._groups(layer, left)
                trials.append(self._measured.trial(layer, [fitted for fitted, *_ in groups]))
                errors.append(self._error(layer, groups))
        moved = self._measured.divergences(trials, progress).reshape(len(self._layers), -1)
        ratios = np.clip(moved, TINY, 1 / TINY) / np.maximum(np.reshape(errors, moved.shape), TINY)
        scales = np.exp(np.log(ratios).mean(axis=1))
        return {la.weight: float(s) for la, s in zip(self._layers, scales, strict=True)}

    def run(
        self,
        masks_at: Callable[[Mapping[str, F64], Mapping[str, Bool], float], dict[str, Bool]],
        left: Mapping[str, Bool],
        share: float,
        scales: Mapping[str, float],
        progress: Callable[[int], None] = lambda _: None,
    ) -> dict[str, Bool]:
        """Zero weights in rounds, and refit the others after each.

        Args:
            masks_at: given the error that each weight would add by tensor (``float64`` of the
                tensor's shape), the weights that are not zero yet by tensor (``bool``) and the
                share that is to go, returns the weights that stay by tensor (``bool``).
            left: the weights that are not zero to begin with, by tensor (``bool``).
            share: the share of these weights that is to be gone in the end.
            scales: what the relative errors of a tensor are multiplied by; default 1.
            progress: called with 1 after each round.

        Returns:
            The weights that stay, by tensor (``bool`` of its shape).
        """
        first = np.mean(np.concatenate([mask.ravel() for mask in left.values()]))
        ratio = max(1 - share, 1e-6) / max(float(first), 1e-6)
        rounds = max(1, int(np.ceil(np.log(min(ratio, 1.0)) / np.log(DENSITY_STEP))))
        result = dict(left)
        fitted = {la.node: self._measured.matrices(la) for la in self._layers}
        for k in range(1, rounds + 1):
            errors: dict[str, F64] = {}
            for la in self._layers:
                groups = self._groups(la, result[la.weight], fitted[la.node])
                fitted[la.node] = [values for values, *_ in groups]
                errors[la.weight] = _rounded(self._worth(la, groups) * scales.get(la.weight, 1.0))
            result = masks_at(errors, result, 1 - float(first) * ratio ** (k / rounds))
            progress(1)
        return result

    def _worth(self, layer: Layer, groups: Sequence[_Group]) -> F64:
        """Return the relative error that each weight would add, of the tensor's shape."""
        worth = [from_rows(layer, found / energy) for _, found, _, energy in groups]
        return np.asarray(layer.form.to_tensor(np.stack(worth)), dtype=np.float64)

    def _error(self, layer: Layer, groups: Sequence[_Group]) -> float:
        """Return the relative error that the refitted weights leave."""
        moments = self._measured.moments[layer.node]
        return sum(
            output_energy(w - fitted, m.covariance) / energy
            for (fitted, _, w, energy), m in zip(groups, moments, strict=True)
        ) / len(groups)

    def _groups(self, layer: Layer, left: Bool, start: Sequence[F64] | None = None) -> list[_Group]:
        """Refit the remaining weights of each group, from weights near the result if given."""
        result: list[_Group] = []
        for w, m, support, diagonal, near in zip(
            self._measured.matrices(layer),
            self._measured.moments[layer.node],
            layer.form.to_matrix(left),
            self._diagonals[layer.node],
            start or repeat(None, layer.form.groups),
            strict=True,
        ):
            energy = output_energy(w, m.covariance)
            fitted, worth = refitted(w, m.covariance, to_rows(layer, support), diagonal, near)
            result.append((fitted, worth, w, energy if energy > 0 else 1.0))
        return result


WORTH_DAMPING = 1e-2
"""Ridge of the inverse that says what a weight is worth, as a multiple of the mean variance of the
inputs."""

REFIT_DAMPING = 1e-3
"""Ridge of the refit, likewise."""


def refitted(
    weights: F64,
    covariance: F64,
    support: Bool,
    inverse_diagonal: F64,
    start: F64 | None = None,
    relative: float = REFIT_DAMPING,
) -> tuple[F64, F64]:
    """Refit the weights of a layer on a support, and say what each of them is worth.

    Args:
        weights: ``float64 [outputs, width]`` of the original.
        covariance: ``float64 [width, width]`` of its inputs.
        support: ``bool [outputs, width]``, the weights that may differ from zero.
        inverse_diagonal: ``float64 [width]``, that of the damped inverse of the covariance.
        start: weights near the result, see :func:`onnxprune.linear.ridge.ridge_rows`.
        relative: ridge as a multiple of the mean variance of the inputs.

    Returns:
        The refitted weights, zero outside the support, and the squared error that removing
        each would add, zero outside; both ``float64 [outputs, width]``.
    """
    fitted = weights
    if not support.all():
        ridge = damping_of(np.diagonal(covariance), relative) or 1.0
        fitted = ridge_rows(weights, covariance, support, ridge, start)
    return fitted, np.where(support, fitted**2 / inverse_diagonal, 0.0)


def _rounded(errors: F64) -> F64:
    """Round errors to 12 bits: sums in another order, on other threads, must decide nothing."""
    fraction, exponent = np.frexp(errors)
    return np.asarray(np.ldexp(np.round(fraction * 4096) / 4096, exponent))
