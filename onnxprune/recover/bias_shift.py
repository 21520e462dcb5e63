"""Bias shift: what a removed weight added on average moves into the bias of its output.

That is ``w * E[x]`` for a weight ``w`` of an input ``x`` (intercept compensation). DFQ (arXiv
1906.04721, section 4.2) corrects biases the same way, FLAP (arXiv 2312.11983) for removed channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, Bool
from onnxprune.linear.bias import add_bias, bias_shape, found_bias, is_own, takes_bias
from onnxprune.linear.requantise import pack, unpack
from onnxprune.measure.statistics import ActivationStats
from onnxprune.model.edit import edit, node_id, rebuild
from onnxprune.model.model import Model
from onnxprune.plans.cut import Cut
from onnxprune.recover.ladder import Ladder
from onnxprune.recover.task import Step, Task
from onnxprune.structure.structure import Weight


def shift_biases(
    pruned: Model,
    cut: Cut,
    stats: Mapping[tuple[str, int], ActivationStats],
    *,
    grow: bool = True,
) -> Model:
    """Return the pruned model with the mean of what was removed added to its biases.

    The mean of an input channel is taken over all positions; zero padding at the borders of a
    map is not accounted for.

    Args:
        pruned: the result of rewriting the model.
        cut: what left it.
        stats: activation statistics of the original by point (tensor name and channel axis).
        grow: whether layers may get biases that have none of their own.
    """
    graph, before = edit(pruned), edit(cut.model)
    unpack(graph)
    unpack(before)
    nodes = {node_id(node): node for node in graph.nodes}
    constants: dict[str, gs.Tensor] = before.tensors()
    for weight in cut.structure.weights:
        removed, node = _removed(weight, cut), nodes[weight.node]
        if weight.output_axis is None or weight.point not in stats or not removed.any():
            continue
        if not isinstance(node.inputs[weight.input], gs.Constant):
            continue  # something else reads the integers as well
        if not takes_bias(graph, node):
            continue
        values = np.asarray(constants[weight.tensor].values, dtype=np.float64)
        values *= float(node.attrs.get("alpha", 1.0))
        delta = _mean_contribution(weight, values * removed, stats[weight.point].overall_mean())
        if weight.output_labels is not None:
            delta = delta[cut.kept[weight.output_labels]]
        bias = found_bias(graph, node, bias_shape(weight, len(delta)))[0]
        if delta.any() and (grow or is_own(bias, len(delta))):
            add_bias(graph, node, weight, delta, constants[weight.tensor].values.dtype)
    return pack(rebuild(graph, pruned), pruned)


def _removed(weight: Weight, cut: Cut) -> Bool:
    """Return which weights stop contributing, ``bool`` of the shape of the original's tensor."""
    removed = np.zeros(weight.shape, dtype=np.bool_)
    if weight.data_labels is not None:
        removed |= ~cut.kept[weight.data_labels][weight.channel_of]
    if weight.tensor in cut.plan.masks:
        removed |= ~cut.plan.masks[weight.tensor]
    return removed


def _mean_contribution(weight: Weight, values: F64, mean: F64) -> F64:
    """Sum ``values * mean`` of their input channel for each output, ``float64 [outputs]``."""
    product = values * mean[weight.channel_of]
    outputs = np.broadcast_to(weight.output_of, product.shape)
    return np.bincount(outputs.ravel(), weights=product.ravel()).astype(np.float64)


def _climb(ladder: Ladder, task: Task, *, alone: bool) -> None:
    """Offer the pruned model with shifted biases; warn if they are refused and nothing follows."""
    if task.cut.is_empty:
        return
    shifted = shift_biases(task.pruned, task.cut, task.stats(), grow=task.grow)
    if not ladder.offer("bias", shifted) and alone:
        ladder.refuse("bias compensation")


STEP = Step(partial(_climb, alone=True), needs_stats=True)
"""The whole recovery."""

FIRST_STEP = Step(partial(_climb, alone=False), needs_stats=True, in_trials=False)
"""Before the layers are fitted, which makes up for more."""
