"""Changes: how many units of each group stayed, and how the weights of each layer shrank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import numpy_helper

from onnxprune.linear.bias import before_bias
from onnxprune.measure.divergence import Sensitivity
from onnxprune.model.cost import unpacked_weights
from onnxprune.model.model import Model
from onnxprune.plans.plan import PruningPlan
from onnxprune.report.report import GroupChange, Layer
from onnxprune.structure.structure import Structure


def group_changes(
    structure: Structure, plan: PruningPlan, sensitivities: Sequence[Sensitivity] = ()
) -> list[GroupChange]:
    """Count the units of each group that stay.

    Args:
        structure: the traced model.
        plan: says which units stay.
        sensitivities: how much the outputs move without channels of each group, if it is known.
    """
    kept = plan.kept_units(structure)
    found = {s.group: s for s in sensitivities}
    return [
        GroupChange(g.name, g.nodes, len(g.units), int(kept[g.units].sum()), found.get(g.name))
        for g in structure.groups
    ]


def layer_changes(structure: Structure, before: Model, after: Model) -> list[Layer]:
    """Compare the weight operands of the nodes that two models have in common.

    Args:
        structure: the traced original.
        before: the original.
        after: the pruned model.
    """
    tensors = [{t.name: t for t in m.proto.graph.initializer} for m in (before, after)]
    nodes = {n.output[0]: n for n in after.proto.graph.node}
    stored = unpacked_weights(after)
    layers = []
    for weight in structure.weights:
        node = nodes.get(weight.node) or nodes.get(before_bias(weight.node))
        old = tensors[0].get(weight.tensor)
        operand = node.input[weight.input] if node else ""
        new = tensors[1].get(stored.get(operand, operand))
        if node is None or old is None or new is None:
            continue
        zeros = [int(np.count_nonzero(numpy_helper.to_array(t))) for t in (old, new)]
        layers.append(
            Layer(
                node.name or weight.node,
                weight.op_type,
                weight.tensor,
                tuple(old.dims),
                tuple(new.dims),
                *zeros,
            )
        )
    return layers
