"""Zeros: single weights become zero, and nothing else leaves."""

from __future__ import annotations

from onnxprune.run.run import Run
from onnxprune.run.study import Study
from onnxprune.search.strategy import Answer, Strategy


def zeros_alone(study: Study) -> Answer:
    """Zero the weights that matter least until a sparsity is reached.

    Raises:
        BudgetError: if so many cannot be zeroed.
    """
    return Answer(study, study.decider.zeros(study.run.request.sparsity or 0.0))


def _fits(run: Run) -> bool:
    return run.request.mode == "weights" and run.request.sparsity is not None


STRATEGY = Strategy("zeros", _fits, zeros_alone)
