"""Cut: a plan together with the model that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from onnxprune.arrays import Bool
from onnxprune.model.model import Model
from onnxprune.model.shapes import Shapes
from onnxprune.plans.plan import PruningPlan
from onnxprune.structure.structure import Structure
from onnxprune.structure.subject import Subject


@dataclass(frozen=True, eq=False)
class Cut:
    """What leaves a model: the decision, and all that those who carry it out need to know.

    Attributes:
        model: the model that was traced, before anything leaves it.
        structure: the result of tracing it.
        shapes: its observed shapes.
        plan: what leaves it.
    """

    model: Model
    structure: Structure
    shapes: Shapes
    plan: PruningPlan

    @classmethod
    def of(cls, subject: Subject, plan: PruningPlan) -> Cut:
        """Return what a plan takes out of a subject."""
        return cls(subject.folded, subject.structure, subject.shapes, plan)

    @cached_property
    def kept(self) -> Bool:
        """Which labels stay, ``bool [labels]``."""
        return self.plan.kept_labels(self.structure)

    @property
    def is_empty(self) -> bool:
        """Whether all channels stay, and no single weight becomes zero."""
        return not (self.plan.cuts_channels or self.plan.masks)
