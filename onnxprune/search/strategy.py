"""Strategy: what a way to meet a request has to say, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxprune.plans.plan import PruningPlan
from onnxprune.run.execute import Outcome, execute
from onnxprune.run.run import Run
from onnxprune.run.study import Study
from onnxprune.timing.speed import Speed


@dataclass(frozen=True)
class Answer:
    """The plan that meets a request.

    Attributes:
        study: what the plan is for, which may have lost whole parts already.
        plan: what leaves.
        outcome: the plan carried out; None where nobody had to do that to find it.
        speed: the latency that it leads to; None if it was not measured.
        warnings: what the user should know of how it was found.
    """

    study: Study
    plan: PruningPlan
    outcome: Outcome | None = None
    speed: Speed | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, outcome: Outcome, warnings: tuple[str, ...] = ()) -> Answer:
        """Return the answer that a plan which was carried out is."""
        return cls(outcome.study, outcome.plan, outcome, outcome.speed, warnings)

    def carried_out(self) -> Outcome:
        """Return the plan carried out, with all that the user should know."""
        outcome = self.outcome or execute(self.study, self.plan)
        return replace(outcome, warnings=(*self.warnings, *outcome.warnings))


@dataclass(frozen=True)
class Strategy:
    """One way to meet requests of one kind.

    Attributes:
        name: what it is called.
        fits: whether it meets what is asked for in a run.
        meet: finds the plan; raises :class:`~onnxprune.errors.BudgetError` if there is none, which
            names the best achievable.
    """

    name: str
    fits: Callable[[Run], bool]
    meet: Callable[[Study], Answer]
