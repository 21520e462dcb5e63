"""Within a budget: the finished model has to meet it, with all that recovery adds."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.errors import BudgetError
from onnxprune.model import cost, storage
from onnxprune.plans.budgets import Budget, Kind, Measured, budget_of
from onnxprune.plans.plan import PruningPlan
from onnxprune.run.study import Study
from onnxprune.search.branches import drop_branches
from onnxprune.search.strategy import Answer, Strategy
from onnxprune.search.within_latency import as_finished

TIGHTENINGS = 5
"""Times that a limit is tightened by what recovery added."""


def within_budget(study: Study, budget: Budget) -> PruningPlan:
    """Remove channels until the finished model is within a budget.

    What recovery adds (biases) is only known once it is there, so the limit is tightened by
    what a plan exceeds it.
    """
    limit = budget
    for _ in range(TIGHTENINGS):
        plan = study.decider.channels(limit)
        left = _share(study, plan, budget.kind)
        if left <= budget.limit:
            return plan
        limit = replace(limit, limit=limit.limit * budget.limit / left * 0.999)
    raise BudgetError(
        f"{budget.asked} cannot be reached by removing channels: {left:.4f} of the original is "
        "left; ask for less"
    )


def _share(study: Study, plan: PruningPlan, kind: Kind) -> float:
    """Return which fraction of the original's cost the finished model has; 0 if plans know it."""
    if not kind.grows:
        return 0.0
    run, model = study.run, as_finished(study, plan)
    after = replace(
        run.given.cost,
        params=cost.count_params(model),
        bytes=storage.pack(model.proto, run.location).size,
    )
    return kind.measure(Measured(run.given.cost, after))


def _meet(study: Study) -> Answer:
    budget = budget_of(study.run.request, study.run.given.cost)
    left = drop_branches(study, budget)
    return Answer(left, within_budget(left, budget))


STRATEGY = Strategy("within a budget", lambda _: True, _meet)
