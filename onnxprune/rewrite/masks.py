"""Masks: multiply a tensor by zeros and ones, for references."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.arrays import Array
from onnxprune.model.model import Model


def times(
    graph: gs.Graph, tensor: gs.Tensor, mask: Array, result: gs.Variable | None = None
) -> gs.Variable:
    """Multiply a tensor by a mask (an array that broadcasts to it, of its element type).

    Args:
        graph: gets the node.
        tensor: to multiply.
        mask: zeros and ones.
        result: the tensor to write to; None for a new one.

    Returns:
        The product.
    """
    name = f"onnxprune/mask/{len(graph.nodes)}"
    result = gs.Variable(name) if result is None else result
    inputs = [tensor, gs.Constant(f"{name}/values", mask)]
    graph.nodes.append(gs.Node("Mul", name, inputs=inputs, outputs=[result]))
    return result


def dtypes_of(model: Model) -> dict[str, np.dtype[np.generic]]:
    """Return the element types of a model's tensors, by name."""
    return {
        name: np.dtype(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))
        for name, kind in model.types.items()
        if kind.tensor_type.elem_type
    }
