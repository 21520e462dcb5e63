"""Lighten: take whole parts out of a model before channels leave, where that is the cheaper cut.

All the work of a branch goes with it, and what the others lose by that, fitted to the original
together with what leaves of their channels, may be less than what the same work costs in channels.
Which branches: those that are missed least once channels alone have met the budget. First enough of
them leave for half of the work; if the outputs then are nearer to those of the original, enough for
all of it, and if not, for a quarter. What leaves of the rest is decided for what is left, and one
recovery makes up for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from onnxprune.budget import Budget
from onnxprune.depth import Yardstick
from onnxprune.execute import shortened, tried
from onnxprune.graph import Model
from onnxprune.pruning_plan import PruningPlan
from onnxprune.removals import Removal, apart
from onnxprune.shorten import with_gates
from onnxprune.steering import within_latency
from onnxprune.study import Study

HALF, MORE, LESS = 0.5, 1.0, 0.25
"""Of the work that a budget wants gone, what branches do: in the first trial, and in the second,
if the first helps or not."""

KINDS = ("macs", "latency")
"""Kinds of budgets that a branch's work counts for."""


def lightened(study: Study, budget: Budget) -> Study:
    """Take out the branches without which a budget costs less.

    Args:
        study: of the whole model.
        budget: what may remain of it once channels have left as well.

    Returns:
        The study of what is left; the same where no branch leaves.
    """
    request = study.request
    branches = [r for r in study.removals if r.kind == "branch"]
    automatic = request.mode == "auto" and request.recover == "full" and budget.kind in KINDS
    if not (automatic and study.selected and branches):
        return study
    yardstick = Yardstick(study, len(branches))
    best, whole = study, tried(study, partial(_rest, study, budget))
    nearest = yardstick.distance(whole.model) if whole else float("inf")
    order = _dispensable(whole.model if whole else study.given.folded, branches, yardstick)

    def helps(share: float) -> bool:
        nonlocal best, nearest
        left = shortened(study, _enough(order, share * (1 - budget.limit), study))
        trial = tried(left, partial(_rest, left, budget))
        distance = yardstick.distance(trial.model) if trial else float("inf")
        if nearer := distance < nearest:
            best, nearest = left, distance
        return nearer

    helps(MORE if helps(HALF) else LESS)
    return best


def _rest(left: Study, budget: Budget) -> PruningPlan:
    """Meet a budget with channels of what is left of a model; a latency as it is measured."""
    if budget.kind == "latency":
        return within_latency(left, budget).plan
    return left.decider.channels(budget)


def _dispensable(model: Model, branches: Sequence[Removal], yardstick: Yardstick) -> list[Removal]:
    """Order branches by how far the outputs of a model are from the original's without each."""
    gated, gates = with_gates(model, branches)
    distances = yardstick.without(gated, gates, [r.name for r in branches])
    ranked = sorted(zip(distances, range(len(branches)), strict=True))
    return [branches[k] for _, k in ranked]


def _enough(order: Sequence[Removal], share: float, study: Study) -> tuple[str, ...]:
    """Return the first branches that can leave together and do such a share of the operations."""
    macs, chosen = study.node_macs, list[Removal]()
    wanted = share * study.given.cost.macs
    for removal in order:
        if wanted <= 0:
            break
        if all(apart(removal, other) for other in chosen):
            chosen.append(removal)
            wanted -= sum(macs[node] for node in removal.layers)
    return tuple(removal.name for removal in chosen)
