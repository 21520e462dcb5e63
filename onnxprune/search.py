"""Search: find the plan that meets a request, by trying where it cannot be worked out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

from onnxprune import cost, storage
from onnxprune.budget import Budget
from onnxprune.candidates import promising, proven
from onnxprune.depth import removal_order
from onnxprune.division import divided
from onnxprune.egp import emptied
from onnxprune.errors import BudgetError
from onnxprune.execute import (
    Outcome,
    clean,
    execute,
    finished,
    of_given,
    refitted,
    shortened,
    tried,
)
from onnxprune.gates import drop_of, keeps_drop
from onnxprune.lighten import lightened
from onnxprune.pruning_plan import PruningPlan
from onnxprune.recovery import QUICK
from onnxprune.speed import Speed, check_speed, measure_speed, refusal
from onnxprune.steering import as_finished, within_latency
from onnxprune.study import Study

MACS = tuple(round(0.95 * 0.97**k, 4) for k in range(96, -1, -1))
"""Ratios of the operations that are tried for the fewest within a bound on the accuracy."""

STRIDE = 4
"""Steps between the first of them that have to prove themselves: what is recovered with little
effort says roughly where to begin."""

TIGHTENINGS = 5
"""Times that a limit is tightened by what recovery added."""

STEERINGS = 2
"""Times that a latency is steered for by what was measured."""

ALIGNMENTS = (8, 16)
"""Widths that processors like, tried where removing channels made a model slower."""


def search(study: Study) -> Outcome:
    """Find and carry out the plan that meets the request of a study.

    Raises:
        BudgetError: if there is none; names the best achievable.
    """
    return _repaired(
        study,
        lambda study: timed(study, _carried_out(study)),
        lambda outcome: outcome.speed if outcome.narrower else None,
        lambda outcome: not (outcome.plan.cuts_channels or outcome.plan.removals),
    )


def find_plan(study: Study) -> tuple[Study, PruningPlan]:
    """Find the plan that meets the request of a study; carry it out only where that decides.

    Returns:
        The study that the plan belongs to, which may have lost whole parts, and the plan.

    Raises:
        BudgetError: if there is none; names the best achievable.
    """
    left, plan, _ = _repaired(study, _planned, lambda planned: planned[2])
    return left, plan


def _planned(study: Study) -> tuple[Study, PruningPlan, Speed | None]:
    """Return a plan and the study it is for, and the speed that it leads to if it cuts channels."""
    found = _found(study)
    if isinstance(found, Outcome):
        return found.study, found.plan, timed(study, found).speed if found.narrower else None
    left, plan = found
    speed = check_speed(left, as_finished(left, plan)) if plan.cuts_channels else None
    return left, of_given(plan, left), speed


def _carried_out(study: Study) -> Outcome:
    found = _found(study)
    return found if isinstance(found, Outcome) else execute(*found)


def _found(study: Study) -> Outcome | tuple[Study, PruningPlan]:
    """Return a plan and what it is for; where plans had to be tried, the best as carried out."""
    request = study.request
    if request.lossless:
        return clean(study)
    if request.mode == "depth":
        return emptied(study) if request.zeroes else _shorter(study)
    if request.budget is None:
        return _fewest_macs(study)
    if request.sparsity is not None and request.mode == "weights":
        return study, study.decider.zeros(request.sparsity)
    if request.sparsity is not None and request.mode == "auto" and study.selected:
        return divided(study, request.sparsity)
    budget = request.limit(study.bytes)
    left = lightened(study, budget)
    return _steered(left, budget) if budget.kind == "latency" else (left, _within(left, budget))


def _steered(study: Study, budget: Budget) -> Outcome:
    """Meet a latency; what the recovery does to it is only known once it is there."""
    limit = budget
    for _ in range(STEERINGS):
        found = within_latency(study, limit)
        outcome = execute(study, found.plan)
        speed = measure_speed(study, outcome.model)
        outcome = replace(outcome, speed=speed)
        if speed.low <= budget.limit:
            return outcome
        limit = replace(limit, limit=found.speed.value * budget.limit / speed.value)
    return outcome


def timed(study: Study, outcome: Outcome) -> Outcome:
    """Look at the latency of what lost channels or parts; zeros do not change it."""
    known = outcome.speed
    if not outcome.smaller or (known and (known.is_slower or len(study.timing_feeds) == 1)):
        return outcome
    speed = check_speed(study, outcome.model)
    return outcome if known and not refusal(speed) else replace(outcome, speed=speed)


T = TypeVar("T")


def _repaired(
    study: Study,
    attempt: Callable[[Study], T],
    speed_of: Callable[[T], Speed | None],
    only_cleaned: Callable[[T], bool] = lambda _: False,
) -> T:
    """Give what is slower than the original the widths that processors like.

    Args:
        study: the model.
        attempt: meets its request.
        speed_of: the measured speed of what came of that; None where widths do not decide it.
        only_cleaned: whether nothing left it that had to, so that all of it may stay.

    Returns:
        What came of the first attempt, if it is not slower or no other is faster.
    """
    first = attempt(study)
    slower = speed_of(first)
    if slower is None or not slower.is_slower:
        return first
    repairs = [(study.aligned(n), f"their numbers are multiples of {n}") for n in ALIGNMENTS]
    if only_cleaned(first):
        repairs.append((study.uncleaned(), "those that compute nothing stay"))
    for other, what in repairs:
        try:
            found = attempt(other)
        except BudgetError:
            continue
        if not refusal(speed_of(found)):
            study.log.warnings.append(
                "removing channels that way made the model slower than the original (latency "
                f"ratio {slower.value:.3f} at batch {slower.batch}), so {what}, where the request "
                "can be met that way"
            )
            return found
    return first


def _fewest_macs(study: Study) -> Outcome:
    """Remove as many operations as the accuracy allows."""

    @cache
    def plan(k: int) -> PruningPlan:
        return study.decider.channels(Budget("macs", MACS[k], f"macs {MACS[k]:g}"))

    def promises(k: int) -> bool:
        trial = tried(study, partial(plan, k))
        return trial is not None and holds(trial)

    def holds(outcome: Outcome) -> bool:
        return keeps_drop(study, outcome.selected)

    first = promising(len(MACS), promises)
    outcome = proven(len(MACS), first, STRIDE, lambda k: execute(study, plan(k)), holds)
    if not holds(outcome):
        drop, limit = drop_of(study, outcome.selected), study.request.max_drop or 0.0
        shown = "unknown" if drop is None else f"{drop.value:.4f}"
        raise BudgetError(
            f"max_drop {limit:g} cannot be kept by removing channels: removing "
            f"{100 * (1 - MACS[-1]):.0f} % of the operations already loses {shown}; allow more, "
            "or give more samples"
        )
    return outcome


def _within(study: Study, budget: Budget) -> PruningPlan:
    """Remove channels until the finished model is within a budget.

    What recovery adds (biases) is only known once it is there, so the limit is tightened by
    what a plan exceeds it.
    """
    limit = budget
    for _ in range(TIGHTENINGS):
        plan = study.decider.channels(limit)
        left = _left(study, plan, budget.kind)
        if left <= budget.limit:
            return plan
        limit = replace(limit, limit=limit.limit * budget.limit / left * 0.999)
    raise BudgetError(
        f"{budget.asked} cannot be reached by removing channels: {left:.4f} of the original is "
        "left; ask for less"
    )


def _left(study: Study, plan: PruningPlan, kind: str) -> float:
    """Return what is left of the file's bytes or of the parameters once a model is finished."""
    if kind not in ("size", "params"):
        return 0.0
    model = as_finished(study, plan)
    if kind == "params":
        return cost.count_params(model) / study.given.cost.params
    return storage.pack(model.proto, study.location).size / study.bytes


def _shorter(study: Study) -> Outcome:
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
