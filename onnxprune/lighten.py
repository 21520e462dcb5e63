"""Lighten: take whole parts out of a model before channels leave, where that is the cheaper cut.

All the work of a branch goes with it, and what the others lose by that, fitted to the original
together with what leaves of their channels, may be less than what the same work costs in channels.
Which branches: those that are missed least once channels alone have met the budget. They are tried
in sets that double, as long as the outputs come nearer to those of the original. Then what leaves
is decided for what is left, and one recovery makes up for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from onnxprune.budget import Budget
from onnxprune.depth import Yardstick
from onnxprune.execute import shortened, tried
from onnxprune.graph import Model
from onnxprune.removals import Removal, apart
from onnxprune.shorten import with_gates
from onnxprune.study import Study

SHARES = (0.25, 0.5, 1.0)
"""Of the work that a budget wants gone, what the branches of a trial do."""

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
    best, whole = study, tried(study, partial(study.decider.channels, budget))
    nearest = yardstick.distance(whole.model) if whole else float("inf")
    order = _dispensable(whole.model if whole else study.given.folded, branches, yardstick)
    before: tuple[str, ...] = ()
    for share in SHARES:
        names = _enough(order, share * (1 - budget.limit), study)
        if len(names) == len(before):
            continue
        left, before = shortened(study, names), names
        trial = tried(left, partial(left.decider.channels, budget))
        distance = yardstick.distance(trial.model) if trial else float("inf")
        if distance < nearest:
            best, nearest = left, distance
        elif trial:
            break
    return best


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
