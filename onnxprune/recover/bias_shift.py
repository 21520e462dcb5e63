"""Recover: give accuracy back without training.

The rung so far is *intercept compensation*: what a removed weight added on average,
``w * E[x]``, moves into the bias of its output. (DFQ, arXiv 1906.04721, section 4.2, corrects
biases the same way; FLAP, arXiv 2312.11983, for removed channels.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, Bool
from onnxprune.linear.bias import add_bias, found_bias, is_own, takes_bias
from onnxprune.linear.requantise import pack, unpack
from onnxprune.measure.statistics import ActivationStats
from onnxprune.model.edit import edit, node_id, rebuild
from onnxprune.model.model import Model
from onnxprune.plans.cut import Cut
from onnxprune.structure.structure import Weight


def compensate_bias(
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
        pruned: the result of rewriting it.
        cut: what left the original.
        stats: activation statistics of the original by point.
        grow: whether layers may get biases that have none of their own.
    """
    graph, before = edit(pruned), edit(cut.model)
    unpack(graph)
    unpack(before)
    nodes = {node_id(node): node for node in graph.nodes}
    constants: dict[str, gs.Tensor] = before.tensors()
    kept = cut.kept
    for weight in cut.structure.weights:
        removed = _removed(weight, cut)
        if weight.output_axis is None or weight.point not in stats or not removed.any():
            continue
        if not isinstance(nodes[weight.node].inputs[weight.input], gs.Constant):
            continue  # something else reads the integers as well
        if not takes_bias(graph, nodes[weight.node]):
            continue
        values = np.asarray(constants[weight.tensor].values, dtype=np.float64)
        values *= float(nodes[weight.node].attrs.get("alpha", 1.0))
        delta = _mean_contribution(weight, values * removed, stats[weight.point].overall_mean())
        if weight.output_labels is not None:
            delta = delta[kept[weight.output_labels]]
        bias = found_bias(graph, nodes[weight.node], weight, len(delta))[0]
        if delta.any() and (grow or is_own(bias, len(delta))):
            dtype = constants[weight.tensor].values.dtype
            add_bias(graph, nodes[weight.node], weight, delta, dtype)
    return pack(rebuild(graph, pruned), pruned)


def _removed(weight: Weight, cut: Cut) -> Bool:
    """Return which weights stop contributing, ``bool`` of the tensor's shape."""
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
