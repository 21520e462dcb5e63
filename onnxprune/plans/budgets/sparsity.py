"""Sparsity: the fraction of the weights that leaves, with channels or as zeros."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.arrays import Bool
from onnxprune.model.cost import Cost
from onnxprune.plans.budgets.base import Kind, Ledger, Measured
from onnxprune.structure.unit_costs import weights_removed


class Sparsity(Kind):
    """The only kind whose setting says what leaves instead of what remains."""

    name, removes = "sparsity", True

    def limit(self, value: float, whole: Cost) -> float:
        """Return the fraction that may remain, see :meth:`Kind.limit`."""
        return 1 - value

    def predict(self, ledger: Ledger) -> Callable[[Bool], float]:
        """Return what computes the fraction that remains."""
        total, own = max(ledger.whole.weights, 1), ledger.own.weights
        return lambda kept: (own - weights_removed(ledger.structure, kept)) / total

    def measure(self, found: Measured) -> float:
        """Return the fraction that a result has."""
        after = found.after.nonzero_weights if found.zeros else found.after.weights
        return after / max(found.before.weights, 1)

    def achieved(self, found: Measured) -> float | None:
        """Return the fraction of the weights that left, or became zero."""
        return 1 - self.measure(found)
