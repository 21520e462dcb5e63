"""Depth: whole parts leave, as many as a request asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnxprune.errors import BudgetError
from onnxprune.model import storage
from onnxprune.plans.budgets import Kind, Measured, budget_of
from onnxprune.recover.ladder import QUICK
from onnxprune.run.execute import (
    Outcome,
    recover_only,
    with_provenance,
    without_parts,
)
from onnxprune.run.gates import keeps_drop
from onnxprune.run.speed_check import measure_speed
from onnxprune.run.study import Study
from onnxprune.search.branch_trials import MOST_LAYERS, _apart, branch_order, part_entropies
from onnxprune.search.strategy import Answer, Strategy


def _meet(study: Study) -> Answer:
    return Answer.of(remove_parts(study))


def remove_parts(study: Study) -> Outcome:
    """Take out whole parts, one after the other, until the request is met."""
    if not study.run.removals:
        raise BudgetError(
            "no layer can be taken out whole: none lies on a branch that is added to what leads "
            "around it, or between layers that can do without it; use --mode channels or weights"
        )
    if study.run.request.budget is None:
        return fewest_parts(study)
    request, best, parts = study.run.request, 1.0, 0
    budget = None if request.layers else budget_of(request, study.run.given.cost)
    for names in removal_order(study):
        parts = len(names)
        if parts < (request.layers or 0):
            continue
        left = without_parts(study, names)
        if budget is not None:
            best = _share(left, budget.kind)
            if best > budget.limit:
                continue
        outcome = recover_only(left)
        if budget is None:
            return outcome
        if _share(left.of_model(outcome.model, None), budget.kind) <= budget.limit:
            return outcome
    if budget is None:
        reached = f"only {parts} parts can leave, one after the other"
        if not request.recovery.refits:
            reached += "; layers without a path around them leave with recover full only"
    else:
        share = 1 - best if budget.kind.removes else best
        reached = f"the best achievable is {share:.4f}, once all {parts} parts are gone that can be"
    raise BudgetError(
        f"{request.goal} cannot be reached by taking out whole layers: {reached}; ask for "
        "less, or use --mode auto"
    )


def fewest_parts(study: Study) -> Outcome:
    """Take out as many parts as the accuracy allows."""
    limit = study.run.request.max_drop or 0.0
    names: tuple[str, ...] = ()
    for more in removal_order(study):
        if not keeps_drop(study, recover_only(without_parts(study, more), QUICK).selected):
            break
        names = more
    while names:
        outcome = recover_only(without_parts(study, names))
        if keeps_drop(study, outcome.selected):
            return outcome
        names = names[:-1]
    raise BudgetError(
        f"max_drop {limit:g} cannot be kept by taking out whole layers: the one that is missed "
        "least already loses more; allow more, or use --mode auto"
    )


def _share(left: Study, kind: Kind) -> float:
    """Return which fraction of the original's cost, of one kind, a model has."""
    model, after, speed = left.subject.original, left.subject.cost, None
    if kind.timed:
        speed = measure_speed(left, model)
    if kind.grows:
        packed = storage.pack(with_provenance(model, left).proto, left.run.location)
        after = replace(after, bytes=packed.size)
    return kind.measure(Measured(left.run.given.cost, after, speed))


def removal_order(study: Study) -> Iterator[tuple[str, ...]]:
    """Yield the names of one part that can go, then of two, and so on until no more can.

    Args:
        study: of the whole model.
    """
    names: tuple[str, ...] = ()
    for names in branch_order(study):
        yield names
    if not study.run.request.recovery.refits:
        return
    entropies = part_entropies(study.run.removals, study.activations.rectifiers or ())
    while layers := [r.name for r in _apart(study, names) if r.kind == "layer"]:
        layers.sort(key=entropies.__getitem__)
        losses = {n: _loss(without_parts(study, [*names, n])) for n in layers[:MOST_LAYERS]}
        names = (*names, min(losses, key=losses.__getitem__))
        yield names


def _loss(left: Study) -> float:
    outcome = recover_only(left, QUICK)
    return float(outcome.recovery.get("loss_with", float("inf")))


STRATEGY = Strategy("whole parts", lambda run: run.request.mode == "depth", _meet)
