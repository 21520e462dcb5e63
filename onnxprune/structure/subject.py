"""Subject: a model that was read, observed and traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.arrays import Array
from onnxprune.model import cost
from onnxprune.model.folding import fold
from onnxprune.model.model import Model
from onnxprune.model.qoperators import separated
from onnxprune.model.quantised import weight_values
from onnxprune.model.shapes import Shapes
from onnxprune.structure.structure import Structure
from onnxprune.structure.trace import trace


@dataclass(frozen=True)
class Subject:
    """A model that was read, observed and traced."""

    original: Model
    folded: Model
    shapes: Shapes
    structure: Structure
    cost: cost.Cost

    @property
    def weights(self) -> dict[str, Array]:
        """The values of the weight tensors that may be pruned, by name."""
        return weight_values(self.folded, {w.tensor for w in self.structure.weights})


def trace_subject(
    original: Model, shapes: Shapes, *, exclude: Sequence[str] = (), allow_inexact: bool = False
) -> Subject:
    """Fold and trace a model, whether there is anything to prune or not.

    Args:
        original: the model as it was read.
        shapes: its observed shapes.
        exclude: globs over node and initializer names; what matches keeps its size.
        allow_inexact: let channels leave across which something is normalised.
    """
    folded = fold(original, shapes)
    costs = cost.measure(folded, shapes)
    folded, shapes = separated(folded, shapes)
    structure = trace(folded, shapes, exclude=exclude, allow_inexact=allow_inexact)
    return Subject(original, folded, shapes, structure, costs)
