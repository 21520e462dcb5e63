"""Budget: what may remain of a model, and what would remain of it. Numpy only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from onnxprune.arrays import F64, Bool
from onnxprune.model import cost
from onnxprune.model.model import Model
from onnxprune.model.storage import nbytes
from onnxprune.structure.structure import Structure
from onnxprune.structure.unit_costs import predicted_macs, unit_costs, weights_removed


class Meter:
    """Predicts what remains of a model's costs when only some labels stay.

    Args:
        model: the model that was traced.
        structure: the result of tracing it.
        whole: what the model costs that budgets refer to.
        costs: what the traced one costs, which may have lost whole parts already.
        macs: multiply-accumulates of each node (see :func:`onnxprune.model.cost.node_macs`).
        seconds: measured time of each node, and the part of it that leaves with its channels
            (see :func:`onnxprune.decide.latency_savings.measure_savings`); needed for ``latency``
            only.
    """

    def __init__(
        self,
        model: Model,
        structure: Structure,
        whole: cost.Cost,
        costs: cost.Cost,
        macs: Mapping[str, float],
        seconds: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
    ) -> None:
        self._model = model
        self._structure = structure
        self._costs = costs
        self._before = whole
        self._whole, saved = seconds or (macs, macs)
        self._amounts = {"macs": macs, "latency": saved}

    def remaining(self, kind: str) -> Callable[[Bool], float]:
        """Return what computes the fraction that remains with ``kept`` (``bool [labels]``)."""
        if kind in self._amounts:
            amounts = self._amounts[kind]
            share = self._costs.macs / max(self._before.macs, 1)
            total = max(sum(amounts.values()), 1e-30) / max(share, 1e-30)
            return lambda kept: predicted_macs(self._structure, amounts, kept) / total
        if kind == "sparsity":
            total, left = max(self._before.weights, 1), self._costs.weights
            return lambda kept: (left - weights_removed(self._structure, kept)) / total
        return lambda kept: self._constants_left(kept, in_bytes=kind == "size")

    def unit_costs(self, kind: str) -> F64:
        """Return what removing each unit alone would save, ``float64 [units]``, in any unit."""
        return unit_costs(self._structure, self._amounts.get(kind))

    def efficiency(self) -> F64:
        """Return which part of its share of the latency removing a unit saves, ``[units]``."""
        share = unit_costs(self._structure, self._whole)
        saved = unit_costs(self._structure, self._amounts["latency"])
        return np.divide(saved, share, out=np.ones_like(saved), where=share > 0)

    def _constants_left(self, kept: Bool, *, in_bytes: bool) -> float:
        """Return the share of the float constants, or of the file's bytes, that stays."""
        shares: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
        for site in self._structure.sites:
            uses = shares[site.tensor]
            key = (site.node, site.input)
            uses[key] = uses.get(key, 1.0) * float(kept[site.labels].mean())
        before = after = 0.0
        for tensor in self._model.proto.graph.initializer:
            if not in_bytes and tensor.data_type not in cost.FLOATS:
                continue
            size = nbytes(tensor) if in_bytes else float(np.prod(tensor.dims, dtype=np.float64))
            before += size
            after += size * sum(set(shares[tensor.name].values()) or {1.0})
        whole = float(self._before.bytes if in_bytes else self._before.params)
        own = self._costs.bytes if in_bytes else self._costs.params
        return (own - (before - after)) / max(whole, 1.0)
