"""Relations: which channels of a model are constant, or linear functions of each other.

One walk over the graph, by abstract interpretation: every tensor that an operator of
:mod:`onnxprune.clean.transfers` makes gets :class:`~onnxprune.clean.channels.Channels` along one
of its axes. What any other operator computes counts as unknown, which costs coverage, never
correctness.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.clean.facts import Facts, States
from onnxprune.clean.transfers import TRANSFERS
from onnxprune.model.edit import edit
from onnxprune.model.model import Model
from onnxprune.model.shapes import Shapes
from onnxprune.structure.structure import Structure


def relate(
    model: Model,
    shapes: Shapes,
    structure: Structure,
    states: Mapping[str, States] | None = None,
) -> Facts:
    """Find what is known of the channels of a model's tensors.

    Args:
        model: the traced model.
        shapes: its observed shapes.
        structure: the result of tracing it.
        states: of Relu nodes by their first output; what was always on or off on some samples is
            taken to be so always.
    """
    facts = Facts(model, shapes, structure, states)
    for node in edit(model).nodes:
        transfer = TRANSFERS.get(node.op)
        if transfer is None or node.domain not in ("", "ai.onnx", None):
            continue
        if all(shapes.has(t.name) for t in node.outputs if not t.is_empty()):
            transfer(facts, node)
    return facts
