"""Macs: multiply-accumulates for one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxprune.arrays import F64, Bool
from onnxprune.plans.budgets.base import Kind, Ledger, Measured
from onnxprune.structure.unit_costs import predicted_macs, unit_costs

COUNTED = 1
"""Multiply-accumulates by which a count of a whole model may differ from the sum over its parts."""


def predicted_by_node(ledger: Ledger, amounts: Mapping[str, float]) -> Callable[[Bool], float]:
    """Return what computes which share remains of an amount that goes with each node's weights.

    Args:
        ledger: what the model costs.
        amounts: that of each node, by its first output.
    """
    share = ledger.own.macs / max(ledger.whole.macs, 1)
    total = max(sum(amounts.values()), 1e-30) / max(share, 1e-30)
    return lambda kept: predicted_macs(ledger.structure, amounts, kept) / total


class Macs(Kind):
    """Multiply-accumulates of layers with weights and of products of two activations."""

    name, is_work = "macs", True

    def predict(self, ledger: Ledger) -> Callable[[Bool], float]:
        """Return what computes the fraction that remains."""
        return predicted_by_node(ledger, ledger.macs)

    def unit_costs(self, ledger: Ledger) -> F64:
        """Return what each unit does, ``float64 [units]``."""
        return unit_costs(ledger.structure, ledger.macs)

    def measure(self, found: Measured) -> float:
        """Return the fraction that a result has."""
        return (found.after.macs - COUNTED) / max(found.before.macs, 1)

    def achieved(self, found: Measured) -> float | None:
        """Return the fraction as it is counted."""
        return found.after.macs / max(found.before.macs, 1)
