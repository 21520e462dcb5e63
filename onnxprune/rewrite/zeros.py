"""Zeros: single weights become zero. The reference multiplies the weights by their mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.arrays import Array
from onnxprune.model.model import UNPACKS
from onnxprune.model.quantised import places, spread
from onnxprune.plans.cut import Cut
from onnxprune.rewrite.masks import times


def apply(graph: gs.Graph, cut: Cut) -> None:
    """Zero the weights that a cut does not keep, in a graph of its model."""
    tensors: dict[str, Any] = graph.tensors()
    for name, mask in cut.plan.masks.items():
        values = np.asarray(tensors[name].values)
        tensors[name].values = np.where(mask, values, _zero_point(tensors[name], values))


def refer(graph: gs.Graph, cut: Cut) -> None:
    """Multiply the weights by their masks where they are read."""
    for name, stays in cut.plan.masks.items():
        tensor = graph.tensors()[name]
        for node in list(tensor.outputs):
            if node.op in UNPACKS:
                output, node.outputs[0] = node.outputs[0], gs.Variable(f"{name}/unpacked")
                dtype = (
                    helper.tensor_dtype_to_np_dtype(node.attrs["to"])
                    if node.op == "Cast"
                    else node.inputs[1].values.dtype
                )
                times(graph, node.outputs[0], stays.astype(dtype), output)
                continue
            for i, operand in enumerate(node.inputs):
                if operand is tensor:
                    node.inputs[i] = times(graph, tensor, stays.astype(tensor.values.dtype))


def _zero_point(tensor: gs.Constant, values: Array) -> Array:
    """Return what stands for zero in a tensor, in a shape that broadcasts to it."""
    for node in tensor.outputs:
        at = places(node.op, node.attrs)
        if at and node.inputs[at.weight] is tensor and at.zero < len(node.inputs):
            point = node.inputs[at.zero]
            if isinstance(point, gs.Constant):
                return spread(np.asarray(point.values), values.shape, at)
    return np.zeros((), dtype=values.dtype)
