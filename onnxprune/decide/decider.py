"""Decide: turn scores and a budget into a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxprune.arrays import F64, Array, Bool
from onnxprune.decide.allocate import Goal, allocate_channels, allocate_weights
from onnxprune.decide.damage import ErrorsLeft
from onnxprune.decide.score import Scorer
from onnxprune.decide.spread import SPREADS, erk_share
from onnxprune.errors import BudgetError
from onnxprune.measure.divergence import Sensitivity
from onnxprune.plans.budgets import KINDS, Budget, Ledger
from onnxprune.plans.plan import PruningPlan, plan_from_units
from onnxprune.plans.request import Request
from onnxprune.structure.structure import Structure, described
from onnxprune.structure.subject import Subject
from onnxprune.structure.unit_costs import counted


@dataclass(frozen=True, eq=False)
class Decider:
    """Chooses what stays of one model; what it finds out serves every budget.

    Attributes:
        subject: the model.
        scorer: scores its channels or weights.
        errors: those that are left, if the metric wants them.
        ledger: what the model costs.
        request: criterion and allocation.
        align: preferred divisor of the channels that stay in a group, see
            :func:`onnxprune.decide.allocate.allocate_channels`; None for an automatic choice. It
            need not be that of the request.
    """

    subject: Subject
    scorer: Scorer
    errors: ErrorsLeft | None
    ledger: Ledger
    request: Request
    align: int | None = None

    def aligned(self, align: int | None) -> Decider:
        """Return one that prefers an alignment."""
        return replace(self, align=align)

    def channels(self, budget: Budget) -> PruningPlan:
        """Remove channels until a budget is met.

        Raises:
            BudgetError: if it cannot be met.
        """
        structure, kind = self.subject.structure, budget.kind
        remaining = kind.predict(self.ledger)
        costs, scores = None, self._unit_scores
        if self._additive:
            costs = kind.unit_costs(self.ledger)
        else:
            scores = kind.weigh(scores, self.ledger)
        goal = Goal(
            lambda kept: 1 - remaining(structure.units.keep(kept)),
            1 - budget.limit,
            "" if kind.removes else budget.asked,
        )
        divide = self.align is None
        units = allocate_channels(
            structure, scores, goal, align=self.align, divide=divide, costs=costs
        )
        return plan_from_units(self.subject.original.sha256, structure, units)

    def zeros(self, sparsity: float, base: PruningPlan | None = None) -> PruningPlan:
        """Zero single weights until, with the channels that leave anyway, so many are gone.

        Args:
            sparsity: the share of all weights.
            base: a plan whose channels leave.

        Raises:
            BudgetError: if so many cannot be zeroed.
        """
        subject = self.subject
        names = {w.tensor for w in counted(subject.structure)}
        allowed = names - subject.structure.excluded
        weights = {n: w for n, w in subject.weights.items() if n in allowed}
        if not weights:
            raise BudgetError("every weight is excluded; nothing can be zeroed")
        base = base or PruningPlan(subject.original.sha256)
        left = self._left(weights, base)
        masks = self._zeroed(weights, left, sparsity)
        return PruningPlan(subject.original.sha256, base.keep, masks)

    def weights_left(self, plan: PruningPlan) -> float:
        """Return the share of the weights that stays when a plan's channels leave."""
        return KINDS["sparsity"].predict(self.ledger)(plan.kept_labels(self.subject.structure))

    @property
    def sensitivities(self) -> list[Sensitivity]:
        """What cutting each group does to the outputs, if the metric looks at errors."""
        return self.errors.sensitivities if self.errors else []

    @cached_property
    def _unit_scores(self) -> F64:
        """Scores of the units, ``float64 [units]``."""
        if self.errors is None:
            scores = self.scorer.score_units()
        else:
            scores = self.scorer.score_unit_errors(self.errors.units)
        if self.request.allocation in ("auto", "global"):
            return scores
        return _spread_units(self.subject.structure, scores, self.request.allocation)

    @property
    def _additive(self) -> bool:
        return self.errors is not None and self.request.allocation in ("auto", "global")

    def _left(self, weights: Mapping[str, Array], base: PruningPlan) -> dict[str, Bool]:
        """Return where weights are neither zero already nor leave with a channel."""
        left = {n: np.asarray(w != 0) for n, w in weights.items()}
        kept = base.kept_labels(self.subject.structure)
        for weight in self.subject.structure.weights:
            for axis, labels in weight.axes.items() if weight.tensor in left else ():
                view = [1] * len(weight.shape)
                view[axis] = -1
                left[weight.tensor] = left[weight.tensor] & kept[labels].reshape(view)
        return left

    def _check_reachable(
        self, weights: Mapping[str, Array], left: Mapping[str, Bool], sparsity: float
    ) -> None:
        """Refuse what cannot be reached before the rounds, which would speak of a round.

        Raises:
            BudgetError: naming the layers that no rule knows, if there are any.
        """
        magnitudes = {n: np.abs(w).astype(np.float64) for n, w in weights.items()}
        try:
            allocate_weights(magnitudes, left, self.subject.cost.weights, sparsity)
        except BudgetError as error:
            untouched = self.subject.structure.untouched
            raise BudgetError(
                f"{error}; {described(untouched)}" if untouched else f"{error}"
            ) from None

    def _zeroed(
        self, weights: Mapping[str, Array], left: Mapping[str, Bool], sparsity: float
    ) -> dict[str, Bool]:
        total = self.subject.cost.weights
        allocation = "global" if self.request.allocation == "auto" else self.request.allocation
        spread = SPREADS[allocation]
        self._check_reachable(weights, left, sparsity)

        def masks(
            scores: Mapping[str, F64], left: Mapping[str, Bool], part: float
        ) -> dict[str, Bool]:
            comparable = {n: spread(scores[n], erk_share(w.shape)) for n, w in weights.items()}
            return allocate_weights(comparable, left, total, part)

        if self.errors is None:
            return masks({n: s**2 for n, s in self.scorer.score_weights().items()}, left, sparsity)
        # The rounds would name what one of them wanted, where so many cannot be zeroed.
        masks({n: np.abs(w).astype(np.float64) for n, w in weights.items()}, left, sparsity)
        available = sum(w.size for w in weights.values())
        share = min(sparsity * total / available, 1.0)

        def masks_at(
            errors: Mapping[str, F64], left: Mapping[str, Bool], part: float
        ) -> dict[str, Bool]:
            wanted = sparsity if part >= share else part * available / total
            return masks(self.scorer.score_weights(errors), left, wanted)

        scales = self.errors.scales if allocation == "global" else {}
        return self.errors.thinning.run(masks_at, left, share, scales)


def _spread_units(structure: Structure, scores: F64, allocation: str) -> F64:
    """Make the scores of groups comparable by a named spread, ``float64 [units]``."""
    spread = SPREADS[allocation]
    shares: dict[int, list[float]] = {}
    group_of = {int(u): k for k, group in enumerate(structure.groups) for u in group.units}
    for weight in structure.weights:
        units = (structure.units.atoms(labels)[1] for labels in weight.axes.values())
        for k in {group_of[int(u)] for own in units for u in own if int(u) in group_of}:
            shares.setdefault(k, []).append(erk_share(weight.shape))
    result = scores.copy()
    for k, group in enumerate(structure.groups):
        share = sum(shares.get(k, [1.0])) / len(shares.get(k, [1.0]))
        result[group.units] = spread(scores[group.units] ** 2, share)
    return result
