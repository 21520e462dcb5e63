"""The pruning plan: everything before it decides, everything after it executes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.labels import Bool
from onnxprune.structure import Structure


@dataclass(frozen=True)
class PruningPlan:
    """Which units and which single weights of one model stay.

    Attributes:
        model_sha256: hash of the model file that the plan belongs to.
        keep: for each group, ``bool [units]``; groups that are not named keep everything.
        masks: for each weight tensor by name, ``bool`` of its shape; False becomes zero.
    """

    model_sha256: str
    keep: Mapping[str, Bool] = field(default_factory=dict)
    masks: Mapping[str, Bool] = field(default_factory=dict)

    def kept_units(self, structure: Structure) -> Bool:
        """Return the decision as ``bool [units]``."""
        kept = np.ones(len(structure.units), dtype=np.bool_)
        for group in structure.groups:
            if group.name in self.keep:
                kept[group.units] = self.keep[group.name]
        return kept

    def kept_labels(self, structure: Structure) -> Bool:
        """Return the decision as ``bool [labels]``."""
        return structure.units.keep(self.kept_units(structure))


def plan_from_units(model_sha256: str, structure: Structure, kept: Bool) -> PruningPlan:
    """Write a decision over units (``bool [units]``) as a plan."""
    return PruningPlan(model_sha256, {g.name: kept[g.units] for g in structure.groups})
