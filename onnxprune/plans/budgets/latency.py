"""Latency: measured in turns with the original."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.arrays import F64, Bool
from onnxprune.plans.budgets.base import Kind, Ledger, Measured
from onnxprune.plans.budgets.macs import predicted_by_node
from onnxprune.structure.unit_costs import unit_costs


class Latency(Kind):
    """Predicted from the seconds of each node, of which only a part leaves with its channels."""

    name, timed, is_work = "latency", True, True

    def predict(self, ledger: Ledger) -> Callable[[Bool], float]:
        """Return what computes the fraction that remains."""
        return predicted_by_node(ledger, ledger.seconds()[1])

    def unit_costs(self, ledger: Ledger) -> F64:
        """Return what each unit does, ``float64 [units]``."""
        return unit_costs(ledger.structure, ledger.seconds()[1])

    def weigh(self, scores: F64, ledger: Ledger) -> F64:
        """Divide scores by the part of its share of the latency that removing a unit saves."""
        whole, saved = (unit_costs(ledger.structure, seconds) for seconds in ledger.seconds())
        return scores / np.divide(saved, whole, out=np.ones_like(saved), where=whole > 0)

    def measure(self, found: Measured) -> float:
        """Return the fraction that a result has."""
        return found.speed.value if found.speed else 1.0

    def within(self, found: Measured, value: float) -> bool:
        """Return whether a result may be so fast: whether the interval reaches down to it."""
        return found.speed is None or found.speed.low <= value

    def achieved(self, found: Measured) -> float | None:
        """Return the fraction that was measured; None if it was not."""
        return found.speed.value if found.speed else None
