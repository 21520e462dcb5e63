"""Prunable: whether a model has anything that a request can take from it."""

from __future__ import annotations

from onnxprune.errors import BudgetError, ModelError
from onnxprune.plans.request import Request
from onnxprune.structure.structure import Structure, described
from onnxprune.structure.unit_costs import counted


def check_prunable(structure: Structure, request: Request) -> None:
    """Refuse a model of which nothing can leave in the requested mode.

    Raises:
        ModelError: if there is nothing to prune.
        BudgetError: if there are weights, but no rule for any of them.
    """
    if request.lossless:
        return
    if structure.untouched and not counted(structure):
        best = 0 if request.budget in ("sparsity", "layers") else 1
        raise BudgetError(
            f"{request.goal} cannot be reached: the best achievable is {best}, since "
            f"{described(structure.untouched)}; see 'onnxprune inspect'"
        )
    if not counted(structure):
        raise ModelError(
            "the model has no prunable weight: no Conv, ConvTranspose, Gemm or MatMul with a "
            "constant weight was found"
        )
    if request.mode == "channels" and not structure.groups:
        why = structure.costliest()
        raise ModelError(
            f"no channel of the model can be removed{': ' if why else ''}{why}; see 'onnxprune "
            "inspect', or use --mode weights"
        )
