"""Elimination: which channels a layer can do without if the others make up for them. Numpy only.

Backward elimination by least squares. With the inverse ``P`` of the damped covariance of a
layer's inputs, removing the inputs ``u`` and refitting the others raises the squared error by
``tr(W_u P_uu^-1 W_u^T)``; the refitted weights are ``W - W_u P_uu^-1 P_u`` and the inverse
for the inputs that stay is ``P - P_u^T P_uu^-1 P_u`` (Optimal Brain Surgeon with blocks; for
channels see OSSCAR, arXiv 2403.12983). A unit that several layers read costs the sum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, I64
from onnxprune.linear.ridge import damped_inverse

ELIMINATION_DAMPING = 1e-3
"""Ridge of the inverse that units are removed from, as a multiple of the mean variance of the
inputs."""

ROUNDS = 256
"""A group is eliminated in at most about so many rounds."""


@dataclass
class GroupReader:
    """A layer (or one convolution group of it) that reads the units of a group.

    Attributes:
        weights: ``float64 [outputs, width]``.
        covariance: ``float64 [width, width]``, of its inputs.
        columns: for each unit that it reads, the inputs ``int64 [k]`` that leave with it.
        scale: what its squared error is divided by.
        group: which convolution group of the layer it is.
    """

    weights: F64
    covariance: F64
    columns: dict[int, I64]
    scale: float
    group: int = 0


def output_energy(weights: F64, covariance: F64) -> float:
    """Return the variance of a layer's outputs, summed over them.

    Args:
        weights: ``float64 [outputs, width]``.
        covariance: ``float64 [width, width]``, of its inputs.
    """
    return float(np.einsum("od,od->", weights @ covariance, weights))


@dataclass(frozen=True)
class Elimination:
    """How a group of units can leave.

    Attributes:
        order: the units in the order in which they left.
        errors: the summed relative error after each, ``float64 [units]``, never decreasing.
        snapshots: after so many units, the refitted weights of each reader.
    """

    order: list[int]
    errors: F64
    snapshots: dict[int, list[F64]]


def eliminate(
    units: Sequence[int], readers: Sequence[GroupReader], keep: Sequence[int] = ()
) -> Elimination:
    """Remove units one after the other, always the one whose loss costs least.

    Args:
        units: the units of a group.
        readers: the layers that read them; a unit that none reads costs nothing.
        keep: after how many units the weights are wanted.
    """
    states = [_Remaining(r) for r in readers]
    left, total = list(units), 0.0
    order: list[int] = []
    errors: list[float] = []
    snapshots: dict[int, list[F64]] = {}
    batch = max(1, len(left) // ROUNDS)
    while left:
        costs = np.zeros(len(left))
        for state in states:
            costs += state.costs(left)
        until = min((k for k in keep if k > len(order)), default=len(units))
        first = np.argsort(costs, kind="stable")[: min(batch, until - len(order))]
        leaving = [left[k] for k in first]
        for k in first:
            total += max(float(costs[k]), 0.0)
            errors.append(total)
        order += leaving
        for state in states:
            state.remove(leaving)
        if len(order) in keep:
            snapshots[len(order)] = [state.weights.copy() for state in states]
        gone = set(leaving)
        left = [u for u in left if u not in gone]
    return Elimination(order, np.asarray(errors), snapshots)


class _Remaining:
    """One reader while units leave it."""

    def __init__(self, reader: GroupReader) -> None:
        self.weights = reader.weights.astype(np.float64)
        self.inverse = damped_inverse(reader.covariance, ELIMINATION_DAMPING)
        self.columns = reader.columns
        self.scale = reader.scale

    def costs(self, units: Sequence[int]) -> F64:
        """Return the relative error that removing each unit adds, ``float64 [units]``."""
        result = np.zeros(len(units))
        by_size: dict[int, list[int]] = {}
        for k, unit in enumerate(units):
            if unit in self.columns:
                by_size.setdefault(len(self.columns[unit]), []).append(k)
        for members in by_size.values():
            columns = np.stack([self.columns[units[k]] for k in members])
            blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
            weights = self.weights[:, columns].transpose(1, 2, 0)  # [units, k, outputs]
            solved = np.linalg.solve(blocks, weights)
            result[members] = np.einsum("uko,uko->u", weights, solved) / self.scale
        return result

    def remove(self, units: Sequence[int]) -> None:
        """Take units away and let the other inputs make up for them."""
        found = [self.columns[u] for u in units if u in self.columns]
        if not found:
            return
        gone = np.concatenate(found)
        rows = self.inverse[gone]
        solved = np.linalg.solve(rows[:, gone], rows)
        self.weights -= self.weights[:, gone] @ solved
        self.inverse -= rows.T @ solved
        self.weights[:, gone] = 0.0
        # What has left must not be met again: cut it out exactly.
        self.inverse[gone] = 0.0
        self.inverse[:, gone] = 0.0
        self.inverse[gone, gone] = 1.0
