"""Steering: find the channels whose removal brings the measured latency within a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import BudgetError
from onnxprune.linear.layer import prepare
from onnxprune.linear.requantise import pack
from onnxprune.model.model import Model
from onnxprune.plans.budgets import Budget
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.run.execute import with_provenance
from onnxprune.run.speed_check import measure_speed
from onnxprune.run.study import Study
from onnxprune.timing.speed import Speed

CLOSE = 0.05
"""How far below the budget a ratio may be, relative to it, before a better one is looked for."""

AIM = 0.98
"""Where in the budget to aim for."""

RESOLUTION, MARGIN = 0.004, 0.15
"""Predicted ratios that are as good as the same, and how near a known one not to go, relative to
what is in between."""

MEASUREMENTS, ATTEMPTS = 7, 24
"""Plans that are timed at most, and those that are thought of."""


Point = tuple[float, float | None]
"""A predicted ratio, and the measured one if there is any."""


@dataclass(frozen=True)
class Tried:
    """A plan that was timed: the predicted ratio it was made for, and the measured one."""

    predicted: float
    plan: PruningPlan
    speed: Speed


def within_latency(study: Study, budget: Budget) -> Tried:
    """Remove channels until the measured latency is within a budget, and hardly less.

    Raises:
        BudgetError: if it cannot be; names the best that was measured.
    """
    decider = study.decider
    return steer(
        budget,
        lambda ratio: decider.channels(replace(budget, limit=ratio)),
        lambda plan: measure_speed(study, as_finished(study, plan)),
    )


def as_finished(study: Study, plan: PruningPlan) -> Model:
    """Return a model of the shapes that a plan leads to, which are what latency depends on."""
    cut = Cut.of(study.subject, plan)
    pruned = rewrite(cut)
    if study.run.request.recovery.adds_biases:
        pruned = pack(prepare(pruned, cut)[0], pruned)
    return with_provenance(pruned, study)


def steer(
    budget: Budget,
    plan: Callable[[float], PruningPlan],
    measure: Callable[[PruningPlan], Speed],
) -> Tried:
    """Find the largest ratio within a budget: by interpolation between measured ones.

    Args:
        budget: what may remain.
        plan: makes a plan for a predicted ratio, or raises :class:`BudgetError`.
        measure: times it.

    Raises:
        BudgetError: if no plan was measured to be within the budget.
    """
    aim = AIM * budget.limit
    tried: list[Tried] = []
    low: Point = (0.0, None)  # within the budget, or too little for any plan
    high: Point = (1.0, 1.0)  # not within it
    ratio: float | None = budget.limit
    for _ in range(ATTEMPTS):
        if ratio is None or len({id(t.speed) for t in tried}) >= MEASUREMENTS:
            break
        try:
            candidate = plan(ratio)
        except BudgetError:
            low = (ratio, None)
        else:
            known = next((t.speed for t in tried if _same(t.plan, candidate)), None)
            tried.append(Tried(ratio, candidate, known or measure(candidate)))
            if _is_close(tried[-1].speed, budget.limit):
                return tried[-1]
            point = (ratio, tried[-1].speed.value)
            low, high = (point, high) if point[1] <= budget.limit else (low, point)
        ratio = _between(low, high, aim)
    good = [t for t in tried if t.speed.value <= budget.limit]
    if good:
        return max(good, key=lambda t: t.speed.value)
    best = f"{min(t.speed.value for t in tried):.4f}" if tried else "that of the original"
    raise BudgetError(
        f"{budget.asked} cannot be reached by removing channels: the best latency that was "
        f"measured is {best}; ask for less"
    )


def _is_close(speed: Speed, limit: float) -> bool:
    """Whether a ratio is within the limit, and too near it to be told from a better one."""
    return speed.value <= limit and (speed.value >= (1 - CLOSE) * limit or speed.high > limit)


def _between(low: Point, high: Point, aim: float) -> float | None:
    """Return the predicted ratio to try next; None if there is nothing in between."""
    (p, r), (p_high, r_high) = low, high
    width = p_high - p
    if width < RESOLUTION or r_high is None:
        return None
    if r is None:  # as if the line from the original through the last point went on
        slope = (1 - p_high) / (1 - r_high) if r_high < 1 else 1.0
        return max(p_high - slope * (r_high - aim), p + width / 2)
    wanted = p + width * (aim - r) / (r_high - r)
    return float(np.clip(wanted, p + MARGIN * width, p_high - MARGIN * width))


def _same(a: PruningPlan, b: PruningPlan) -> bool:
    return all(np.array_equal(a.keep[name], b.keep[name]) for name in a.keep)
