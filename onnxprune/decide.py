"""Decide: turn scores and a budget into a plan."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune import cost
from onnxprune.allocate import allocate_channels, allocate_weights
from onnxprune.errors import BudgetError
from onnxprune.labels import F64, Bool
from onnxprune.plan import PruningPlan, plan_from_units
from onnxprune.request import Request
from onnxprune.score import Scorer
from onnxprune.selection import Measured, unit_errors
from onnxprune.spread import SPREADS, erk_share
from onnxprune.structure import Structure
from onnxprune.subject import Subject
from onnxprune.thinning import Thinning


def decide(
    subject: Subject, scorer: Scorer, measured: Measured | None, request: Request
) -> PruningPlan:
    """Choose what stays.

    Args:
        subject: the model.
        scorer: scores its channels or weights.
        measured: second moments, if the metric wants the errors that are left.
        request: mode, budget and alignment.

    Raises:
        BudgetError: if the budget cannot be met.
    """
    if request.mode == "channels":
        return _channels(subject, scorer, measured, request)
    return _weights(subject, scorer, measured, request)


def _channels(
    subject: Subject, scorer: Scorer, measured: Measured | None, request: Request
) -> PruningPlan:
    structure = subject.structure
    macs = cost.node_macs(subject.folded, subject.shapes)
    total = sum(macs.values())

    def saved(kept: Bool) -> float:
        labels = structure.units.keep(kept)
        if request.macs is None:
            return cost.weights_removed(structure, labels) / subject.cost.weights
        return 1 - cost.predicted_macs(structure, macs, labels) / total

    if request.macs is not None:
        target, goal = 1 - request.macs, f"macs {request.macs:g}"
        costs = cost.unit_costs(structure, macs)
    else:
        assert request.sparsity is not None
        target, goal = request.sparsity, ""
        costs = cost.unit_costs(structure)
    if measured is None:
        scores = scorer.score_units()
    else:
        scores = scorer.score_unit_errors(unit_errors(structure, measured))
    ranked_as_is = request.allocation in ("auto", "global")
    if not ranked_as_is:
        scores = _spread_units(structure, scores, request.allocation)
    units = allocate_channels(
        structure,
        scores,
        saved,
        target,
        align=request.align,
        costs=costs if measured is not None and ranked_as_is else None,
        goal=goal,
    )
    return plan_from_units(subject.original.sha256, structure, units)


def _spread_units(structure: Structure, scores: F64, allocation: str) -> F64:
    """Make the scores of groups comparable by a named spread, ``float64 [units]``."""
    spread = SPREADS[allocation]
    shares: dict[int, list[float]] = {}
    group_of = {int(u): k for k, group in enumerate(structure.groups) for u in group.units}
    for weight in structure.weights:
        units = (structure.units.atoms(labels)[1] for labels in weight.axes.values())
        for k in {group_of[int(u)] for own in units for u in own if int(u) in group_of}:
            shares.setdefault(k, []).append(erk_share(weight.shape))
    result = scores.copy()
    for k, group in enumerate(structure.groups):
        share = sum(shares.get(k, [1.0])) / len(shares.get(k, [1.0]))
        result[group.units] = spread(scores[group.units] ** 2, share)
    return result


def _weights(
    subject: Subject, scorer: Scorer, measured: Measured | None, request: Request
) -> PruningPlan:
    sparsity = request.sparsity
    assert sparsity is not None
    total, excluded = subject.cost.weights, subject.structure.excluded
    names = {w.tensor for w in cost.counted(subject.structure)}
    weights = {n: w for n, w in subject.weights.items() if n in names - excluded}
    if not weights:
        raise BudgetError("every weight is excluded; nothing can be zeroed")
    nonzero = {n: w != 0 for n, w in weights.items()}

    allocation = "global" if request.allocation == "auto" else request.allocation
    spread = SPREADS[allocation]

    def masks(scores: Mapping[str, F64], left: Mapping[str, Bool], part: float) -> dict[str, Bool]:
        comparable = {n: spread(scores[n], erk_share(w.shape)) for n, w in weights.items()}
        return allocate_weights(comparable, left, total, part)

    if measured is None:
        scores = {n: s**2 for n, s in scorer.score_weights().items()}
        return PruningPlan(subject.original.sha256, masks=masks(scores, nonzero, sparsity))
    available = sum(w.size for w in weights.values())
    share = min(sparsity * total / available, 1.0)

    def masks_at(
        errors: Mapping[str, F64], left: Mapping[str, Bool], part: float
    ) -> dict[str, Bool]:
        wanted = sparsity if part >= share else part * available / total
        return masks(scorer.score_weights(errors), left, wanted)

    thinning = Thinning(measured, nonzero)
    scales = thinning.scales() if allocation == "global" else {}
    return PruningPlan(subject.original.sha256, masks=thinning.run(masks_at, share, scales))
