"""Meet a latency: steer for it, finish the model, measure that, and steer again if it is missed."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.plans.budgets import KINDS, Budget, budget_of
from onnxprune.run.execute import Outcome, execute
from onnxprune.run.run import Run
from onnxprune.run.speed_check import measure_speed
from onnxprune.run.study import Study
from onnxprune.search.branches import drop_branches
from onnxprune.search.strategy import Answer, Strategy
from onnxprune.search.within_latency import within_latency

STEERINGS = 2
"""Times that a latency is aimed at anew, because the finished model missed it."""


def meet_latency(study: Study, budget: Budget) -> Outcome:
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


def _meet(study: Study) -> Answer:
    budget = budget_of(study.run.request, study.run.given.cost)
    return Answer.of(meet_latency(drop_branches(study, budget), budget))


def _fits(run: Run) -> bool:
    kind = KINDS.get(run.request.budget or "")
    return kind is not None and kind.timed


STRATEGY = Strategy("measured latency", _fits, _meet)
