"""The pruning plan: everything before it decides, everything after it executes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.arrays import Bool
from onnxprune.structure.structure import Structure

if TYPE_CHECKING:
    from onnxprune.plans.request import Request


@dataclass(frozen=True)
class PruningPlan:
    """Which units and which single weights of one model stay.

    Attributes:
        model_sha256: hash of the model file that the plan belongs to.
        keep: for each group, ``bool [units]``; groups that are not named keep everything.
        masks: for each weight tensor by name, ``bool`` of its shape; False becomes zero.
        removals: names of the parts that leave as a whole (see
        :mod:`onnxprune.structure.removals`);
            ``keep`` and ``masks`` are about what is left then.
        request: what was asked for, if the plan was made on its own.
        nodes: names of the nodes of each group, for those who read the plan; decides nothing.
        warnings: what the user should know of how it was made; its file does not hold them.
    """

    model_sha256: str
    keep: Mapping[str, Bool] = field(default_factory=dict)
    masks: Mapping[str, Bool] = field(default_factory=dict)
    removals: tuple[str, ...] = ()
    request: Request | None = None
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def cuts_channels(self) -> bool:
        """Whether any channel leaves."""
        return not all(kept.all() for kept in self.keep.values())

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

    def summary(self) -> str:
        """Return in a few words what stays."""
        units, stay = (sum(int(f(k)) for k in self.keep.values()) for f in (len, np.sum))
        text = f"{stay} of {units} channels of {len(self.keep)} groups stay"
        if self.masks:
            weights = sum(m.size for m in self.masks.values())
            left = sum(int(m.sum()) for m in self.masks.values())
            text += f", {left} of {weights} weights of {len(self.masks)} tensors stay"
        return text


def plan_from_units(model_sha256: str, structure: Structure, kept: Bool) -> PruningPlan:
    """Write a decision over units (``bool [units]``) as a plan."""
    return PruningPlan(model_sha256, {g.name: kept[g.units] for g in structure.groups})
