"""Allocate: turn scores and a requested sparsity into a plan. Numpy only.

Everything is ranked globally: scores are comparable across layers (see
:mod:`onnxprune.decide.score`). A floor keeps every layer alive.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, I64, Bool
from onnxprune.errors import BudgetError
from onnxprune.structure.structure import Group, Structure

AUTO_ALIGN, AUTO_SHARE = 8, 8
"""Channels that onnxruntime computes together on common processors, and the steps that a group is
divided into at least: a narrow group has too few multiples of the first to choose from."""

PRECISION = 0.002
"""How far less than allowed may remain, relative to that, before a step is divided."""

REFILLS = 100
"""How many steps may return, at most."""

WEIGHT_FLOOR = 0.005
"""Share of each weight tensor that is never zeroed, at least one weight."""


@dataclass(frozen=True)
class Goal:
    """How much has to leave.

    Attributes:
        removed: the sparsity reached when only these units (``bool [units]``) stay; it grows as
            units leave.
        sparsity: the least sparsity to reach.
        asked: what the request is called in messages; empty for the sparsity.
    """

    removed: Callable[[Bool], float]
    sparsity: float
    asked: str = ""

    def met(self, kept: Bool) -> bool:
        """Whether so few units (``bool [units]``) stay."""
        return self.removed(kept) >= self.sparsity

    def overshot(self, kept: Bool) -> bool:
        """Whether much less stays than may (see :data:`PRECISION`)."""
        return self.removed(kept) > self.sparsity + PRECISION * (1 - self.sparsity)

    def check(self, best: Bool, structure: Structure) -> None:
        """Make sure that the goal is met when everything has left that can.

        Raises:
            BudgetError: names the best achievable, rounded so that it still is.
        """
        if self.met(best):
            return
        reached, stay = self.removed(best), structure.costliest()
        shown = np.ceil((1 - reached) * 1e4) if self.asked else np.floor(reached * 1e4)
        raise BudgetError(
            f"{self.asked or f'sparsity {self.sparsity:g}'} cannot be reached by removing "
            f"channels: the best achievable is {shown / 1e4:.4f}{'; ' if stay else ''}{stay}; "
            "ask for less, or use --mode weights"
        )


def allocate_channels(
    structure: Structure,
    scores: F64,
    goal: Goal,
    *,
    align: int | None = 1,
    divide: bool = False,
    costs: F64 | None = None,
) -> Bool:
    """Choose the units that stay.

    Units leave in steps, worst mean score first. A step takes a group down to a multiple of
    its alignment; only where such steps do not reach the request, single units follow.

    With ``costs``, scores are errors that add up, and the steps that leave first are those
    with the least error for what they save. The worst unit of a group still leaves first.

    Args:
        structure: the traced model.
        scores: ``float64 [units]``, higher = keep.
        goal: how much has to leave.
        align: preferred divisor of the number of units that stay in a group; None for
            :func:`auto_align`.
        divide: whether the last step is taken in part where it would overshoot.
        costs: ``float64 [units]``, what removing each unit saves, or None.

    Returns:
        ``bool [units]``.

    Raises:
        BudgetError: if the goal cannot be reached; names the best achievable.
    """
    free = structure.prunable & ~floor(structure, scores)
    steps = _steps(structure, scores, free, align, costs)
    if align != 1:
        for step in steps:
            free[step] = False
        steps += _steps(structure, scores, free, 1, costs)

    def keep(count: int) -> Bool:
        kept = np.ones(len(structure.units), dtype=np.bool_)
        for step in steps[:count]:
            kept[step] = False
        return kept

    goal.check(keep(len(steps)), structure)
    count = bisect_left(range(len(steps)), True, key=lambda k: goal.met(keep(k)))
    kept = keep(count)
    if divide and count and goal.overshot(kept):
        kept = keep(count - 1)
        for unit in steps[count - 1]:  # only as many as are needed
            kept[unit] = False
            if goal.met(kept):
                break
    _refill(kept, structure, steps[:count], goal)
    return kept


def _refill(
    kept: Bool,
    structure: Structure,
    steps: Sequence[I64],
    goal: Goal,
) -> None:
    """Let steps return, in place, that the goal is met without, the last that left first.

    A step that saves much overshoots; what that leaves room for is cheaper. In a group no step
    returns before the one that left after it.
    """
    group_of = np.empty(len(structure.units), dtype=np.int64)
    for k, group in enumerate(structure.groups):
        group_of[group.units] = k
    full = set[int]()
    for step in reversed(steps[-REFILLS:]):
        own = int(group_of[step[0]])
        if own in full:
            continue
        before = kept[step]
        kept[step] = True
        if not goal.met(kept):
            kept[step] = before
            full.add(own)


def floor(structure: Structure, scores: F64) -> Bool:
    """Return the units that must stay so that no axis becomes empty: the best of each.

    Axes made of products come last: mostly what their factors keep suffices.
    """
    stays = np.zeros(len(structure.units), dtype=np.bool_)
    axes = [(labels, *structure.units.atoms(labels)) for labels in structure.axes]
    for labels, index, unit in sorted(axes, key=lambda a: len(a[1]) > len(a[0])):
        leaving = np.bincount(index[~stays[unit]], minlength=len(labels))
        if not leaving.all():
            continue  # an index of which everything stays keeps the axis alive
        worst = np.full(len(labels), np.inf)
        np.minimum.at(worst, index, scores[unit])
        stays[unit[index == np.argmax(worst)]] = True
    return stays


def auto_align(size: int) -> int:
    """Return the alignment of a group of so many units.

    A power of two, at most :data:`AUTO_ALIGN` and at most the size by :data:`AUTO_SHARE`.
    """
    return 1 << int(np.log2(max(1, min(AUTO_ALIGN, size // AUTO_SHARE))))


def _steps(
    structure: Structure, scores: F64, free: Bool, align: int | None, costs: F64 | None
) -> list[I64]:
    """Cut every group's free units into aligned steps; return all steps, worst first."""
    found: list[tuple[float, int, I64]] = []
    for group in structure.groups:
        steps = _group_steps(group, scores, free, align)
        values = _priorities(steps, scores, costs)
        found += [
            (v, len(found) + k, s) for k, (v, s) in enumerate(zip(values, steps, strict=True))
        ]
    return [units for _, _, units in sorted(found, key=lambda s: s[:2])]


def _group_steps(group: Group, scores: F64, free: Bool, align: int | None) -> list[I64]:
    """Return the steps of one group, worst first."""
    if align is None:
        align = auto_align(len(group.units))
    movable = group.units[free[group.units]]
    movable = movable[np.lexsort((movable, scores[movable]))]
    size = len(group.units)
    cuts = list(range(align, size, align)) if align > 1 else list(range(size))
    ends = sorted({size - c for c in cuts if 0 < size - c <= len(movable)})
    return [movable[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _priorities(steps: Sequence[I64], scores: F64, costs: F64 | None) -> list[float]:
    """Rank the steps of a group; never decreasing, so that a global order takes them in turn."""
    if costs is None:
        return list(np.maximum.accumulate([float(scores[s].mean()) for s in steps]))
    pools: list[tuple[float, float, int]] = []  # error, cost, steps: pooled until convex
    for units in steps:
        error, cost, count = float(scores[units].sum()), float(costs[units].sum()), 1
        while pools and pools[-1][0] * cost >= error * pools[-1][1]:
            other = pools.pop()
            error, cost, count = error + other[0], cost + other[1], count + other[2]
        pools.append((error, cost, count))
    return [
        error / cost if cost > 0 else np.inf for error, cost, count in pools for _ in range(count)
    ]


def allocate_weights(
    scores: Mapping[str, F64], nonzero: Mapping[str, Bool], total: int, sparsity: float
) -> dict[str, Bool]:
    """Choose the single weights that stay.

    Args:
        scores: scores by weight tensor, higher = keep.
        nonzero: where each of these tensors is not zero already.
        total: number of weights of the model, tensors that may not be touched included.
        sparsity: the least share of them that must be zero.

    Returns:
        For each tensor a mask of its shape; False becomes zero.

    Raises:
        BudgetError: if the request cannot be reached; names the best achievable.
    """
    names = list(scores)
    flat = np.concatenate([_protected(scores[n], nonzero[n]).ravel() for n in names])
    untouched = total - len(flat)
    wanted = int(np.ceil(sparsity * total - 1e-9))
    possible = int((flat < np.inf).sum())
    if wanted > possible:
        raise BudgetError(
            f"sparsity {sparsity:g} cannot be reached by zeroing weights: the best achievable is "
            f"{np.floor(possible / total * 1e4) / 1e4:.4f}"
            + (
                f" ({untouched} weights are excluded, of subgraphs, or no rule knows their layers)"
                if untouched
                else ""
            )
            + "; ask for less"
        )
    stays = np.ones(len(flat), dtype=np.bool_)
    stays[np.argsort(flat, kind="stable")[:wanted]] = False
    bounds = np.cumsum([scores[n].size for n in names])[:-1]
    parts = np.split(stays, bounds)
    return {n: part.reshape(scores[n].shape) for n, part in zip(names, parts, strict=True)}


def _protected(scores: F64, nonzero: Bool) -> F64:
    """Put zeros first, and give the best weights of a tensor an infinite score."""
    result = np.where(nonzero, scores, -np.inf)
    floor = min(max(1, int(scores.size * WEIGHT_FLOOR)), scores.size)
    best = np.argpartition(result.ravel(), -floor)[-floor:]
    result.ravel()[best] = np.inf
    return result
