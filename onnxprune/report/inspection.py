"""Inspection: which channels and parts of a model can be pruned, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.measure.divergence import Sensitivity
from onnxprune.measure.entropy import Activity
from onnxprune.model.cost import Cost
from onnxprune.report.plain import Result, plain
from onnxprune.structure.removals import Removal
from onnxprune.structure.structure import Structure, Weight
from onnxprune.structure.unit_costs import counted, macs_of_weights, weights_kept


@dataclass(frozen=True)
class Inspection(Result):
    """Which channels and parts of a model can be pruned; with samples, how it reacts to cuts.

    Attributes:
        structure: the traced model.
        cost: its parameters, weights, operations and bytes.
        node_macs: multiply-accumulates of each node for one sample.
        removals: the parts that can leave as a whole.
        rectifiers: how often its rectifiers were on, and their entropy; None without samples.
        sensitivities: by how much (nats) the outputs move without channels of each group; empty
            without samples.
        warnings: what the user should know of the samples and the model.
    """

    structure: Structure
    cost: Cost
    node_macs: Mapping[str, float]
    removals: Sequence[Removal] = ()
    rectifiers: Sequence[Activity] | None = None
    sensitivities: Sequence[Sensitivity] = ()
    warnings: Sequence[str] = ()

    @property
    def prunable_weights(self) -> float:
        """The share of the weights that would leave with all prunable channels."""
        total = max(self.cost.weights, 1)
        return sum(_size(w) * self._leaving(w) for w in counted(self.structure)) / total

    @property
    def prunable_macs(self) -> float:
        """The share of the multiply-accumulates that would leave with them."""
        total = max(self.cost.macs, 1)
        shares = macs_of_weights(self.structure, self.node_macs)
        parts = zip(shares, self.structure.weights, strict=True)
        return float(sum(macs * self._leaving(weight) for macs, weight in parts)) / total

    def _leaving(self, weight: Weight) -> float:
        kept = self.structure.units.keep(~self.structure.prunable)
        return 1 - weights_kept(weight, kept) / max(_size(weight), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: costs, what is prunable, groups, and what is frozen."""
        trials = {s.group: s for s in self.sensitivities}
        values = {
            "cost": self.cost,
            "prunable": {"weights": self.prunable_weights, "macs": self.prunable_macs},
            "units": int(self.structure.prunable.sum()),
            "groups": [
                {
                    "name": g.name,
                    "units": len(g.units),
                    "nodes": g.nodes,
                    "along": g.along,
                    "sensitivity": trials.get(g.name),
                }
                for g in self.structure.groups
            ],
            "removals": [
                {"name": r.name, "kind": r.kind, "layers": r.layers} for r in self.removals
            ],
            "frozen": self.structure.frozen,
            "frozen_by_reason": self.structure.frozen_by_reason(),
            "rectifiers": self.rectifiers,
        }
        result: dict[str, Any] = plain(values)
        return result


def _size(weight: Weight) -> int:
    return int(np.prod(weight.shape))
