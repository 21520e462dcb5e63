"""Size: bytes of the model's files."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.arrays import Bool
from onnxprune.errors import OnnxpruneError
from onnxprune.model.cost import Cost
from onnxprune.model.storage import nbytes
from onnxprune.plans.budgets.base import Kind, Ledger, Measured
from onnxprune.plans.budgets.constants import constants_removed


class Size(Kind):
    """The only kind whose setting is absolute: bytes."""

    name, grows = "size", True

    def limit(self, value: float, whole: Cost) -> float:
        """Return the fraction that may remain, see :meth:`Kind.limit`.

        Raises:
            OnnxpruneError: if the original's files are as small already.
        """
        if value >= whole.bytes:
            raise OnnxpruneError(
                f"size {value:.0f} is no budget: the model's file has {whole.bytes} bytes"
            )
        return value / whole.bytes

    def predict(self, ledger: Ledger) -> Callable[[Bool], float]:
        """Return what computes the fraction that remains."""
        own, whole = ledger.own.bytes, max(float(ledger.whole.bytes), 1.0)
        return lambda kept: (own - constants_removed(ledger, kept, nbytes)) / whole

    def measure(self, found: Measured) -> float:
        """Return the fraction that a result has."""
        return found.after.bytes / max(found.before.bytes, 1)

    def within(self, found: Measured, value: float) -> bool:
        """Return whether the files are small enough."""
        return found.after.bytes <= value

    def achieved(self, found: Measured) -> float | None:
        """Return the bytes of the files."""
        return found.after.bytes

    def show(self, value: float) -> str:
        """Return bytes as people read them."""
        return f"{value:,.0f}"
