"""Search: find the plan that meets a request, by trying where it cannot be worked out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from onnxprune.errors import BudgetError
from onnxprune.plans.plan import PruningPlan
from onnxprune.run.execute import (
    Outcome,
    clean,
    execute,
    of_given,
)
from onnxprune.run.speed_check import check_speed
from onnxprune.run.study import Study
from onnxprune.search.auto import divided
from onnxprune.search.branches import lightened
from onnxprune.search.depth import shorter
from onnxprune.search.egp import emptied
from onnxprune.search.meet_latency import meet_latency
from onnxprune.search.within_budget import within_budget
from onnxprune.search.within_drop import fewest_macs
from onnxprune.search.within_latency import as_finished
from onnxprune.timing.speed import Speed, refusal

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
        return emptied(study) if request.zeroes else shorter(study)
    if request.budget is None:
        return fewest_macs(study)
    if request.sparsity is not None and request.mode == "weights":
        return study, study.decider.zeros(request.sparsity)
    if request.sparsity is not None and request.mode == "auto" and study.selected:
        return divided(study, request.sparsity)
    budget = request.limit(study.bytes)
    left = lightened(study, budget)
    return (
        meet_latency(left, budget)
        if budget.kind == "latency"
        else (left, within_budget(left, budget))
    )


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
