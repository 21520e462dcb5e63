"""Depth: whole parts leave, as many as a request asks for."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.errors import BudgetError
from onnxprune.model import storage
from onnxprune.recover.ladder import QUICK
from onnxprune.run.execute import (
    Outcome,
    finished,
    refitted,
    shortened,
)
from onnxprune.run.gates import keeps_drop
from onnxprune.run.speed_check import measure_speed
from onnxprune.run.study import Study
from onnxprune.search.branch_trials import MOST_LAYERS, _apart, branch_order, part_entropies


def shorter(study: Study) -> Outcome:
    """Take out whole parts, one after the other, until the request is met."""
    if not study.removals:
        raise BudgetError(
            "no layer can be taken out whole: none lies on a branch that is added to what leads "
            "around it, or between layers that can do without it; use --mode channels or weights"
        )
    if study.request.budget is None:
        return _shortest(study)
    request, best, parts = study.request, 1.0, 0
    limit = None if request.layers else request.limit(study.bytes).limit
    for names in removal_order(study):
        parts = len(names)
        if parts < (request.layers or 0):
            continue
        left = shortened(study, names)
        if limit is not None:
            best = _share(left)
            if best > limit:
                continue
        outcome = refitted(left)
        if limit is None or _share(outcome.study.shortened(outcome.model, None)) <= limit:
            return outcome
    if limit is None:
        reached = f"only {parts} parts can leave, one after the other"
        if request.recover != "full":
            reached += "; layers without a path around them leave with recover full only"
    else:
        share = 1 - best if request.sparsity is not None else best
        reached = f"the best achievable is {share:.4f}, once all {parts} parts are gone that can be"
    raise BudgetError(
        f"{request.goal} cannot be reached by taking out whole layers: {reached}; ask for "
        "less, or use --mode auto"
    )


def _shortest(study: Study) -> Outcome:
    """Take out as many parts as the accuracy allows."""
    limit = study.request.max_drop or 0.0
    names: tuple[str, ...] = ()
    for more in removal_order(study):
        if not keeps_drop(study, refitted(shortened(study, more), QUICK).selected):
            break
        names = more
    while names:
        outcome = refitted(shortened(study, names))
        if keeps_drop(study, outcome.selected):
            return outcome
        names = names[:-1]
    raise BudgetError(
        f"max_drop {limit:g} cannot be kept by taking out whole layers: the one that is missed "
        "least already loses more; allow more, or use --mode auto"
    )


def _share(left: Study) -> float:
    """Return what is left of the original by the request's kind of budget."""
    kind, before, after = left.request.budget, left.given.cost, left.subject.cost
    if kind == "latency":
        return measure_speed(left, left.subject.original).value
    if kind == "size":
        packed = storage.pack(finished(left.subject.original, left).proto, left.location)
        return packed.size / left.bytes
    name = "weights" if kind == "sparsity" else str(kind)
    return float(getattr(after, name) / max(getattr(before, name), 1))


def removal_order(study: Study) -> Iterator[tuple[str, ...]]:
    """Yield the names of one part that can go, then of two, and so on until no more can.

    Args:
        study: of the whole model.
    """
    names: tuple[str, ...] = ()
    for names in branch_order(study):
        yield names
    if study.request.recover != "full":
        return
    entropies = part_entropies(study.removals, study.rectifiers or ())
    while layers := [r.name for r in _apart(study, names) if r.kind == "layer"]:
        layers.sort(key=entropies.__getitem__)
        losses = {n: _loss(shortened(study, [*names, n])) for n in layers[:MOST_LAYERS]}
        names = (*names, min(losses, key=losses.__getitem__))
        yield names


def _loss(left: Study) -> float:
    outcome = refitted(left, QUICK)
    return float(outcome.recovery.get("loss_with", float("inf")))
