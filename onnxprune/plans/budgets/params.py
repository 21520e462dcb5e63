"""Params: elements of all float constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from onnxprune.arrays import Bool
from onnxprune.model.cost import FLOATS
from onnxprune.plans.budgets.base import Kind, Ledger, Measured
from onnxprune.plans.budgets.constants import constants_removed


def _elements(tensor: TensorProto) -> float:
    return float(np.prod(tensor.dims, dtype=np.float64)) if tensor.data_type in FLOATS else 0.0


class Params(Kind):
    """Float constants, of which recovery may add some."""

    name, grows = "params", True

    def predict(self, ledger: Ledger) -> Callable[[Bool], float]:
        """Return what computes the fraction that remains."""
        own, whole = ledger.own.params, max(float(ledger.whole.params), 1.0)
        return lambda kept: (own - constants_removed(ledger, kept, _elements)) / whole

    def measure(self, found: Measured) -> float:
        """Return the fraction that a result has."""
        return found.after.params / max(found.before.params, 1)
