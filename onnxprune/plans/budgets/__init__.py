"""Budgets: how much of each kind of cost may remain. A kind is one file, registered in KINDS."""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.errors import OnnxpruneError
from onnxprune.model.cost import Cost
from onnxprune.plans.budgets.base import Budget, Kind, Ledger, Measured
from onnxprune.plans.budgets.latency import Latency
from onnxprune.plans.budgets.macs import Macs
from onnxprune.plans.budgets.params import Params
from onnxprune.plans.budgets.size import Size
from onnxprune.plans.budgets.sparsity import Sparsity
from onnxprune.plans.request import Request

__all__ = ["KINDS", "Budget", "Kind", "Ledger", "Measured", "budget_of"]


def _by_name(kinds: Iterable[Kind]) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds}


KINDS = _by_name([Sparsity(), Params(), Macs(), Latency(), Size()])
"""The kinds of budgets that channels can meet, by the name of their setting."""


def budget_of(request: Request, whole: Cost) -> Budget:
    """Return the budget of a request.

    Args:
        request: what is asked for.
        whole: what the original model costs.

    Raises:
        OnnxpruneError: if the request has none, or of a kind that nobody registered, or if the
            original is within it already.
    """
    if request.budget is None:
        raise OnnxpruneError("there is no budget, only a bound on the accuracy")
    if request.budget not in KINDS:
        raise OnnxpruneError(f"budget {request.budget}: expected one of {', '.join(KINDS)}")
    kind = KINDS[request.budget]
    return Budget(kind, kind.limit(request.budgets[kind.name], whole), request.goal)
