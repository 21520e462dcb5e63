"""Within a drop: the fewest operations within a bound on the accuracy."""

from __future__ import annotations

from functools import cache, partial

from onnxprune.errors import BudgetError
from onnxprune.plans.budgets import KINDS, Budget
from onnxprune.plans.plan import PruningPlan
from onnxprune.run.execute import (
    Outcome,
    execute,
    execute_quickly,
)
from onnxprune.run.gates import drop_of, keeps_drop
from onnxprune.run.study import Study
from onnxprune.search.candidates import promising, proven
from onnxprune.search.strategy import Answer, Strategy

MACS = tuple(round(0.95 * 0.97**k, 4) for k in range(96, -1, -1))
"""Ratios of the operations that are tried for the fewest within a bound on the accuracy."""

STRIDE = 4
"""Steps between the first of them that have to prove themselves: what is recovered with little
effort says roughly where to begin."""


def fewest_macs(study: Study) -> Answer:
    """Remove as many operations as the accuracy allows."""

    @cache
    def plan(k: int) -> PruningPlan:
        return study.decider.channels(Budget(KINDS["macs"], MACS[k], f"macs {MACS[k]:g}"))

    def promises(k: int) -> bool:
        trial = execute_quickly(study, partial(plan, k))
        return trial is not None and holds(trial)

    def holds(outcome: Outcome) -> bool:
        return keeps_drop(study, outcome.selected)

    first = promising(len(MACS), promises)
    outcome = proven(len(MACS), first, STRIDE, lambda k: execute(study, plan(k)), holds)
    if not holds(outcome):
        drop, limit = drop_of(study, outcome.selected), study.run.request.max_drop or 0.0
        shown = "unknown" if drop is None else f"{drop.value:.4f}"
        raise BudgetError(
            f"max_drop {limit:g} cannot be kept by removing channels: removing "
            f"{100 * (1 - MACS[-1]):.0f} % of the operations already loses {shown}; allow more, "
            "or give more samples"
        )
    return Answer.of(outcome)


STRATEGY = Strategy("within a drop", lambda run: run.request.budget is None, fewest_macs)
