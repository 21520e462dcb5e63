"""Lighten: take whole parts out of a model before channels leave, where that is the cheaper cut.

All the work of a branch goes with it, and what the others lose by that, fitted to the original
together with what leaves of their channels, may be less than what the same work costs in channels.
That is tried where channels alone would leave next to nothing of a branch, and for a latency
always: narrow layers take nearly as long with fewer channels, but no time once they are gone.

Which branches: those that are missed least, one after the other (see
:mod:`onnxprune.search.branch_trials`). First enough of them leave for half of the work; if the
outputs then are nearer to those of the original, and the loss is not worse, enough for all of it,
and if not, for a quarter. (The loss alone is noisy; the distance alone counts it as harm when a
classifier is refitted to the labels.) Which channels leave is decided for the shortened
model, and one recovery makes up for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from onnxprune.errors import BudgetError
from onnxprune.plans.budgets import Budget
from onnxprune.plans.plan import PruningPlan
from onnxprune.run.execute import execute_quickly, without_parts
from onnxprune.run.study import Study
from onnxprune.search.branch_trials import BranchOrder, Yardstick
from onnxprune.search.within_latency import within_latency
from onnxprune.structure.removals import Removal
from onnxprune.structure.unit_costs import weights_left

HALF, MORE, LESS = 0.5, 1.0, 0.25
"""Of the work that a budget wants gone, what branches do: in the first trial, and in the second,
if the first helps or not."""

NEXT_TO_NOTHING = 1 / 8
"""Share of the operations of a branch below which channels alone leave too little of it."""


def drop_branches(study: Study, budget: Budget) -> Study:
    """Take out the branches without which a budget costs less.

    Args:
        study: of the whole model.
        budget: what may remain of it once channels have left as well.

    Returns:
        The study of the shortened model; the same study where no branch leaves.
    """
    request = study.run.request
    branches = [r for r in study.run.removals if r.kind == "branch"]
    automatic = request.mode == "auto" and request.recovery.refits and budget.kind.is_work
    if not (automatic and study.run.selected and branches and _wears_out(study, branches, budget)):
        return study
    yardstick, order = Yardstick(study, len(branches)), BranchOrder(study)

    def measured(left: Study) -> tuple[float, float]:
        trial = execute_quickly(left, partial(_rest, left, budget))
        if trial is None:
            return float("inf"), float("inf")
        return yardstick.distance(trial.model), float(trial.recovery["loss_with"])

    best, known = study, set[tuple[str, ...]]([()])
    nearest, least = measured(study)

    def helps(share: float) -> bool:
        nonlocal best, nearest, least
        names = order.enough(share * (1 - budget.limit))
        if names in known:
            return False
        known.add(names)
        left = without_parts(study, names)
        distance, loss = measured(left)
        better = distance < nearest and loss <= least
        if better:
            best, nearest, least = left, distance, loss
        return better

    helps(MORE if helps(HALF) else LESS)
    return best


def _wears_out(study: Study, branches: Sequence[Removal], budget: Budget) -> bool:
    """Whether meeting a budget with channels alone leaves next to nothing of a branch."""
    if budget.kind.timed:
        return True
    try:
        plan = study.decider.channels(budget)
    except BudgetError:
        return True
    structure, macs = study.subject.structure, study.knowledge.node_macs
    left = weights_left(structure, plan.kept_labels(structure))

    def share(branch: Removal) -> float:
        whole = sum(macs[node] for node in branch.layers)
        return sum(macs[node] * left[node] for node in branch.layers) / max(whole, 1.0)

    return min(share(branch) for branch in branches) <= NEXT_TO_NOTHING


def _rest(left: Study, budget: Budget) -> PruningPlan:
    """Meet a budget with channels of a shortened model; a latency by measuring it."""
    if budget.kind.timed:
        return within_latency(left, budget).plan
    return left.decider.channels(budget)
