"""Search: find the plan that meets a request, by the first strategy that fits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxprune.errors import BudgetError
from onnxprune.run.execute import Outcome, plan_for_original
from onnxprune.run.speed_check import check_speed
from onnxprune.run.study import Study
from onnxprune.search import (
    auto,
    depth,
    egp,
    lossless,
    meet_latency,
    within_budget,
    within_drop,
    zeros,
)
from onnxprune.search.strategy import Answer, Strategy
from onnxprune.search.within_latency import as_finished
from onnxprune.timing.speed import refusal

STRATEGIES: list[Strategy] = [
    lossless.STRATEGY,
    egp.STRATEGY,
    depth.STRATEGY,
    within_drop.STRATEGY,
    zeros.STRATEGY,
    auto.STRATEGY,
    meet_latency.STRATEGY,
    within_budget.STRATEGY,
]
"""The ways to meet a request; the first that fits is taken."""

ALIGNMENTS = (8, 16)
"""Widths that processors like, tried where removing channels made a model slower."""


def search(study: Study) -> Outcome:
    """Find and carry out the plan that meets the request of a study.

    Raises:
        BudgetError: if there is none; names the best achievable.
    """

    def attempt(study: Study) -> Answer:
        found = _answer(study)
        return Answer.of(check_latency(found.carried_out()))

    return _realigned_if_slower(study, attempt, _is_clean_up).carried_out()


def find_plan(study: Study) -> Answer:
    """Find the plan that meets the request of a study; carry it out only where that decides.

    Raises:
        BudgetError: if there is none; names the best achievable.
    """

    def attempt(study: Study) -> Answer:
        found = _answer(study)
        if found.outcome:
            checked = check_latency(found.outcome) if _narrower(found) else found.outcome
            return replace(found, speed=checked.speed)
        left, plan = found.study, found.plan
        speed = check_speed(left, as_finished(left, plan)) if plan.cuts_channels else None
        return replace(found, plan=plan_for_original(plan, left), speed=speed)

    return _realigned_if_slower(study, attempt)


def check_latency(outcome: Outcome) -> Outcome:
    """Look at the latency of what lost channels or parts; zeros do not change it."""
    known, study = outcome.speed, outcome.study
    if not outcome.smaller or (known and (known.is_slower or len(study.run.timing_feeds) == 1)):
        return outcome
    speed = check_speed(study, outcome.model)
    return outcome if known and not refusal(speed) else replace(outcome, speed=speed)


def _answer(study: Study) -> Answer:
    return next(s for s in STRATEGIES if s.fits(study.run)).meet(study)


def _realigned_if_slower(
    study: Study,
    attempt: Callable[[Study], Answer],
    may_stay: Callable[[Answer], bool] = lambda _: False,
) -> Answer:
    """Give what is slower than the original the widths that processors like.

    Args:
        study: the model.
        attempt: meets its request.
        may_stay: whether all that left an answer may stay.

    Returns:
        What came of the first attempt, if it is not slower or no other is faster.
    """
    first = attempt(study)
    slower = first.speed
    if slower is None or not slower.is_slower or not _narrower(first):
        return first
    repairs = [(replace(study, align=n), f"their numbers are multiples of {n}") for n in ALIGNMENTS]
    if may_stay(first):
        repairs.append((replace(study, cleans=False), "those that compute nothing stay"))
    for other, what in repairs:
        try:
            found = attempt(other)
        except BudgetError:
            continue
        if not (_narrower(found) and refusal(found.speed)):
            warning = (
                "removing channels that way made the model slower than the original (latency "
                f"ratio {slower.value:.3f} at batch {slower.batch}), so {what}, where the request "
                "can be met that way"
            )
            return replace(found, warnings=(warning, *found.warnings))
    return first


def _is_clean_up(answer: Answer) -> bool:
    """Whether nothing left that had to, but what computes nothing."""
    return not (answer.plan.cuts_channels or answer.plan.removals)


def _narrower(answer: Answer) -> bool:
    """Whether channels left, so that widths decide the latency."""
    return answer.outcome.narrower if answer.outcome else answer.plan.cuts_channels
