"""Within a budget: the finished model has to meet it, with all that recovery adds."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.errors import BudgetError
from onnxprune.model import cost, storage
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.request import Budget
from onnxprune.run.study import Study
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
