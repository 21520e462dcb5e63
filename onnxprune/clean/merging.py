"""Merging: two linear layers in a row become one, where that is exact and cheaper.

What is computed by ``W2 (W1 x + b1) + b2`` is ``(W2 W1) x + (W2 b1 + b2)``. That holds for
matrix products, and for convolutions of which one has a kernel of one: any convolution before
such a one, or such a one before any that does not see its bias end in zero padding. The product
is computed in float64. It takes the place of the two where it needs fewer multiply-accumulates
and has neither more weights nor more that are not zero.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, Array
from onnxprune.linear.bias import add_behind
from onnxprune.model.edit import captured_names, edit, node_id, rebuild, values_of
from onnxprune.model.model import Model
from onnxprune.model.shapes import Shapes

MATRICES = ("Gemm", "MatMul")

OLDEST = 11
"""The version of the operators from which the bias of a Gemm may be missing."""

FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class _Linear:
    """A linear layer: its weights, for matrices ``[inputs, outputs]``, and its bias, if any."""

    node: gs.Node
    constant: gs.Constant
    weight: F64
    bias: F64 | None

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a convolution that sees one position and gives one for each."""
        attributes = self.node.attrs
        unit = all(k == 1 for k in [*self.weight.shape[2:], *attributes.get("strides", [1])])
        return unit and not any(attributes.get("pads", [])) and self.groups == 1

    @property
    def is_padded(self) -> bool:
        """Whether it is a convolution that may read zeros beyond the borders."""
        automatic = _text(self.node.attrs.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID")
        return automatic or any(self.node.attrs.get("pads", []))

    @property
    def groups(self) -> int:
        """Number of convolution groups."""
        return int(self.node.attrs.get("group", 1))


def merge_layers(model: Model, shapes: Shapes, *, keep: Collection[str] = ()) -> tuple[Model, int]:
    """Replace pairs of linear layers by one each.

    Args:
        model: a folded model.
        shapes: its observed shapes.
        keep: first outputs of nodes to be left alone.

    Returns:
        The model, the same object if there are none, and how many layers went.
    """
    if model.opset < OLDEST:
        return model, 0
    graph = edit(model)
    inside = set[str]().union(*(captured_names(node) for node in graph.nodes))
    fixed = inside | {t.name for t in graph.outputs}
    count = 0
    for node in list(graph.nodes):
        second = _linear(node, inside)
        if second is None or node_id(node) in keep:
            continue
        source = _alone(node.inputs[0], fixed, keep)
        added = source if source is not None and source.op == "Add" else None
        if added is not None:
            variable = [t for t in added.inputs if not isinstance(t, gs.Constant)]
            source = _alone(variable[0], fixed, keep) if len(variable) == 1 else None
        first = _linear(source, inside) if source is not None else None
        if first is None or (first.node.op in MATRICES) != (node.op in MATRICES):
            continue
        between = _addend(added, first, shapes) if added is not None else None
        if added is not None and between is None:
            continue
        if node.op in MATRICES:
            count += _merge_matrices(graph, first, second, between)
        elif between is None:
            count += _merge_convolutions(first, second, shapes)
    return (rebuild(graph, model), count) if count else (model, 0)


def _alone(tensor: gs.Tensor, fixed: Collection[str], keep: Collection[str]) -> gs.Node | None:
    """Return what makes a tensor if it is read once and may go."""
    if len(tensor.inputs) != 1 or len(tensor.outputs) != 1 or tensor.name in fixed:
        return None
    maker = tensor.inputs[0]
    return None if node_id(maker) in keep else maker


def _linear(node: gs.Node, inside: Collection[str]) -> _Linear | None:
    """Return what a node computes if it is a linear layer with weights of its own."""
    if node.op not in (*MATRICES, "Conv") or node.domain not in ("", "ai.onnx", None):
        return None
    constant = node.inputs[1]
    if not isinstance(constant, gs.Constant) or isinstance(node.inputs[0], gs.Constant):
        return None
    values = values_of(constant)
    if len(constant.outputs) != 1 or constant.name in inside or values.dtype not in FLOATS:
        return None
    if node.op != "Conv" and values.ndim != 2:
        return None
    weight, bias = values.astype(np.float64), None
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return None
        weight = float(node.attrs.get("alpha", 1.0)) * (
            weight.T if node.attrs.get("transB", 0) else weight
        )
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        if not isinstance(node.inputs[2], gs.Constant):
            return None
        outputs = weight.shape[0 if node.op == "Conv" else 1]
        bias = _row(values_of(node.inputs[2]), outputs)
        if bias is None:
            return None
        if node.op == "Gemm":
            bias = bias * float(node.attrs.get("beta", 1.0))
    return _Linear(node, constant, weight, bias if bias is not None and bias.any() else None)


def _row(values: Array, outputs: int) -> F64 | None:
    """Return a constant as one number for each output; None if it differs by sample as well."""
    if values.size == 1:
        return np.full(outputs, float(values.reshape(-1)[0]))
    if values.size != outputs or values.shape[-1] != outputs:
        return None
    return values.reshape(-1).astype(np.float64)


def _addend(node: gs.Node, first: _Linear, shapes: Shapes) -> F64 | None:
    """Return the bias that an addition behind a matrix product adds."""
    constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
    output = first.node.outputs[0].name
    if first.node.op not in MATRICES or len(constants) != 1 or not shapes.has(output):
        return None
    values = values_of(constants[0])
    if values.ndim > len(shapes.sizes(output)):
        return None
    return _row(values, first.weight.shape[1])


def _merge_matrices(graph: gs.Graph, first: _Linear, second: _Linear, between: F64 | None) -> bool:
    """Let the second of two products compute both; return whether that is cheaper."""
    weight = first.weight @ second.weight
    inputs, inner = first.weight.shape
    outputs = second.weight.shape[1]
    if inputs * outputs >= inner * (inputs + outputs):
        return False
    bias = _sum(first.bias, between)
    bias = _sum(second.bias, bias @ second.weight if bias is not None else None)
    node = second.node
    gemm = "Gemm" in (first.node.op, node.op)
    constants = _constants(first, second, weight, bias)
    if constants is None:
        return False
    node.inputs = [first.node.inputs[0], *constants[: None if gemm else 1]]
    node.op, node.attrs = "Gemm" if gemm else "MatMul", {}
    if bias is not None and not gemm:
        add_behind(graph, node, node_id(node), constants[1])
    return True


def _merge_convolutions(first: _Linear, second: _Linear, shapes: Shapes) -> bool:
    """Let the second of two convolutions compute both; return whether that is exact and cheaper."""
    before, after = first.node.outputs[0].name, second.node.outputs[0].name
    if not (shapes.has(before) and shapes.has(after)):
        return False
    if second.is_pointwise:
        kernel = _ungrouped(first)
        weight = np.tensordot(second.weight.reshape(second.weight.shape[:2]), kernel, axes=1)
        attributes = first.node.attrs
    elif first.is_pointwise and not (second.is_padded and first.bias is not None):
        matrix = first.weight.reshape(first.weight.shape[:2])
        weight = np.moveaxis(np.tensordot(_ungrouped(second), matrix, axes=(1, 0)), -1, 1)
        attributes = second.node.attrs
    else:
        return False
    positions = [int(np.prod(shapes.sizes(t)[2:], dtype=np.int64)) for t in (before, after)]
    apart = positions[0] * first.weight.size + positions[1] * second.weight.size
    if positions[1] * weight.size >= apart:
        return False
    bias = second.bias
    if first.bias is not None:
        summed = second.weight.reshape(*second.weight.shape[:2], -1).sum(axis=2)
        grouped = first.bias.reshape(second.groups, -1).repeat(len(summed) // second.groups, axis=0)
        bias = _sum(bias, (summed * grouped).sum(axis=1))
    constants = _constants(first, second, weight, bias)
    if constants is None:
        return False
    attributes = {k: v for k, v in attributes.items() if k != "group"}
    second.node.inputs = [first.node.inputs[0], *constants]
    second.node.attrs = attributes
    return True


def _ungrouped(layer: _Linear) -> F64:
    """Return the weights of a convolution with zeros between its groups."""
    groups, (outputs, width) = layer.groups, layer.weight.shape[:2]
    result = np.zeros((outputs, groups * width, *layer.weight.shape[2:]))
    for g in range(groups):
        rows = slice(g * outputs // groups, (g + 1) * outputs // groups)
        result[rows, g * width : (g + 1) * width] = layer.weight[rows]
    return result


def _constants(
    first: _Linear, second: _Linear, weight: F64, bias: F64 | None
) -> list[gs.Constant] | None:
    """Return the constants of a merged layer; None if they are worth less than those of two."""
    nonzero = np.count_nonzero(first.weight) + np.count_nonzero(second.weight)
    dtypes = {values_of(layer.constant).dtype for layer in (first, second)}
    if weight.size > first.weight.size + second.weight.size or len(dtypes) > 1:
        return None
    dtype = dtypes.pop()
    with np.errstate(over="ignore"):
        made = [np.ascontiguousarray(v, dtype=dtype) for v in (weight, bias) if v is not None]
    if np.count_nonzero(made[0]) > nonzero or not all(np.isfinite(v).all() for v in made):
        return None
    names = (f"{node_id(second.node)}/merged", f"{node_id(second.node)}/merged_bias")
    return [gs.Constant(name, v) for name, v in zip(names, made, strict=False)]


def _sum(a: F64 | None, b: F64 | None) -> F64 | None:
    if a is None or b is None:
        return b if a is None else a
    result: F64 = a + b
    return result


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
