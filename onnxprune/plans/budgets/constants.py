"""Constants: what remains of a model's tensors when only some labels stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from onnx import TensorProto

from onnxprune.arrays import Bool
from onnxprune.plans.budgets.base import Ledger


def constants_removed(ledger: Ledger, kept: Bool, amount: Callable[[TensorProto], float]) -> float:
    """Return how much of an amount leaves with labels.

    A tensor that several nodes read with other labels becomes one for each of them.

    Args:
        ledger: what the model costs.
        kept: the labels that stay, ``bool [labels]``.
        amount: that of a constant.
    """
    shares: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for site in ledger.structure.sites:
        uses = shares[site.tensor]
        key = (site.node, site.input)
        uses[key] = uses.get(key, 1.0) * float(kept[site.labels].mean())
    return sum(
        amount(tensor) * (1 - sum(set(shares[tensor.name].values()) or {1.0}))
        for tensor in ledger.model.proto.graph.initializer
    )
