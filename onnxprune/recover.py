"""Recover: give accuracy back without training.

The rung so far is *intercept compensation*: what a removed weight added on average,
``w * E[x]``, moves into the bias of its output. (DFQ, arXiv 1906.04721, section 4.2, corrects
biases the same way; FLAP, arXiv 2312.11983, for removed channels.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph import Model, edit, node_id, rebuild
from onnxprune.labels import F64, Array, Bool
from onnxprune.pruning_plan import PruningPlan
from onnxprune.statistics import ActivationStats
from onnxprune.structure import Structure, Weight

RECOVERIES = ("none", "bias", "full")


def compensate_bias(
    original: Model,
    pruned: Model,
    structure: Structure,
    plan: PruningPlan,
    stats: Mapping[tuple[str, int], ActivationStats],
) -> Model:
    """Return the pruned model with the mean of what was removed added to its biases.

    The mean of an input channel is taken over all positions; zero padding at the borders of a
    map is not accounted for.

    Args:
        original: the model that was traced.
        pruned: the result of rewriting it.
        structure: the result of tracing it.
        plan: what was removed.
        stats: activation statistics of the original by point.
    """
    graph = edit(pruned)
    nodes = {node_id(node): node for node in graph.nodes}
    constants: dict[str, gs.Tensor] = edit(original).tensors()
    kept = plan.kept_labels(structure)
    for weight in structure.weights:
        removed = _removed(weight, plan, kept)
        if weight.output_axis is None or weight.point not in stats or not removed.any():
            continue
        values = np.asarray(constants[weight.tensor].values, dtype=np.float64)
        values *= float(nodes[weight.node].attrs.get("alpha", 1.0))
        delta = _mean_contribution(weight, values * removed, stats[weight.point].overall_mean())
        if weight.output_labels is not None:
            delta = delta[kept[weight.output_labels]]
        if delta.any():
            _add_bias(graph, nodes[weight.node], weight, delta, constants)
    return rebuild(graph, pruned)


def _removed(weight: Weight, plan: PruningPlan, kept: Bool) -> Bool:
    """Return which weights stop contributing, ``bool`` of the tensor's shape."""
    removed = np.zeros(weight.shape, dtype=np.bool_)
    if weight.data_labels is not None:
        removed |= ~kept[weight.data_labels][weight.channel_of]
    if weight.tensor in plan.masks:
        removed |= ~plan.masks[weight.tensor]
    return removed


def _mean_contribution(weight: Weight, values: F64, mean: F64) -> F64:
    """Sum ``values * mean`` of their input channel for each output, ``float64 [outputs]``."""
    product = values * mean[weight.channel_of]
    outputs = np.broadcast_to(weight.output_of, product.shape)
    return np.bincount(outputs.ravel(), weights=product.ravel()).astype(np.float64)


def _add_bias(
    graph: gs.Graph,
    node: gs.Node,
    weight: Weight,
    delta: F64,
    constants: Mapping[str, gs.Tensor],
) -> None:
    """Add ``delta`` to a node's output channels: in its bias if it has one, else behind it."""
    dtype = constants[weight.tensor].values.dtype
    name = f"{weight.node}/bias"
    addend = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if node.op in ("Conv", "ConvTranspose"):
        old = 0.0 if addend is None else _value(addend)
        if old is not None:
            _set_input(node, 2, gs.Constant(name, _cast(old + delta, dtype)))
            return
    if node.op == "Gemm":
        old = 0.0 if addend is None else _value(addend)
        beta = float(node.attrs.get("beta", 1.0))
        if old is not None and beta != 0.0:
            scale = 1.0 if addend is None else beta
            if addend is None:
                node.attrs["beta"] = 1.0
            _set_input(node, 2, gs.Constant(name, _cast(old + delta / scale, dtype)))
            return
    _append_add(graph, node, weight, _cast(delta, dtype))


def _value(tensor: gs.Tensor) -> Array | None:
    return np.asarray(tensor.values, dtype=np.float64) if isinstance(tensor, gs.Constant) else None


def _cast(values: Array, dtype: np.dtype[np.generic]) -> Array:
    return np.ascontiguousarray(values, dtype=dtype)


def _set_input(node: gs.Node, i: int, tensor: gs.Tensor) -> None:
    while len(node.inputs) <= i:
        node.inputs.append(gs.Variable.empty())
    node.inputs[i] = tensor


def _append_add(graph: gs.Graph, node: gs.Node, weight: Weight, delta: Array) -> None:
    """Put an addition behind a node, or into the constant addition that is there already."""
    output, name = node.outputs[0], f"{weight.node}/bias"
    assert weight.output_axis is not None
    trailing = -weight.output_axis - 1
    readers = list(output.outputs)
    if len(readers) == 1 and readers[0].op == "Add" and output not in graph.outputs:
        other = 1 - next(i for i, t in enumerate(readers[0].inputs) if t is output)
        old = _value(readers[0].inputs[other])
        if old is not None and old.size == len(delta) == old.shape[-1 - trailing]:
            values = _cast(old + delta.reshape(old.shape), delta.dtype)
            readers[0].inputs[other] = gs.Constant(name, values)
            return
    inner = gs.Variable(f"{weight.node}/without_bias", dtype=output.dtype)
    node.outputs[0] = inner
    bias = gs.Constant(name, delta.reshape(-1, *[1] * trailing))
    graph.nodes.append(
        gs.Node("Add", f"{weight.node}/add_bias", inputs=[inner, bias], outputs=[output])
    )
