"""Subject: a model that was read, observed and traced."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune import graph
from onnxprune.cost import Cost
from onnxprune.graph import Model, Shapes
from onnxprune.labels import Array
from onnxprune.structure import Structure


@dataclass(frozen=True)
class Subject:
    """A model that was read, observed and traced."""

    original: Model
    folded: Model
    shapes: Shapes
    structure: Structure
    cost: Cost

    @property
    def weights(self) -> dict[str, Array]:
        """The values of the weight tensors that may be pruned, by name."""
        return graph.weight_values(self.folded, {w.tensor for w in self.structure.weights})
