"""Over which axes operators sum, written down a second time and apart from the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Summed:
    """An input axis over which a node sums, and the tensor and axis that names its indices."""

    input: int
    axis: int
    tensor: str
    tensor_axis: int


def summed_axes(
    node: NodeProto, shape: Callable[[str], tuple[int, ...]], constants: Mapping[str, Any]
) -> list[Summed]:
    """Return what a node sums over, decided by its type alone."""
    own = [
        Summed(i, axis, node.input[i], axis)
        for i, axis in _own_axes(node, attributes(node), shape, constants)
    ]
    if node.op_type in RECURRENT:
        # The recurrent weight's columns multiply the state, whose units are those of the output.
        state = next(o for o, name in enumerate(node.output) if name)
        own.append(Summed(2, 2, node.output[state], 2 if state else 3))
    return own


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _own_axes(
    node: NodeProto,
    given: Mapping[str, Any],
    shape: Callable[[str], tuple[int, ...]],
    constants: Mapping[str, Any],
) -> list[tuple[int, int]]:
    if node.op_type in ("Conv", "DeformConv", "FusedConv", "ConvTranspose"):
        weight, groups = shape(node.input[1]), given.get("group", 1)
        per_group = weight[0] // groups if node.op_type == "ConvTranspose" else weight[1]
        return [(0, 1)] if per_group > 1 else []
    if node.op_type in ("Gemm", "FusedGemm"):
        return [(0, 1 - given.get("transA", 0)), (1, given.get("transB", 0))]
    if node.op_type in ("MatMul", "FusedMatMul", "TransposeMatMul"):
        a, b = given.get("transA", 0), given.get("transB", 0)
        if len(shape(node.input[1])) == 1:
            b = 1
        return [(0, -1 - a), (1, -2 + b)]
    if node.op_type in RECURRENT:
        return [(0, 2)]
    if node.op_type == "Attention" and node.domain:
        return [(0, 2)]
    if node.op_type in ("Attention", "MultiHeadAttention"):
        return [(0, -1), (1, -1)]
    if node.op_type == "Einsum":
        return _vanishing(given["equation"].decode())
    if node.op_type in SUMS:
        return [(0, k) for k in reduced_axes(node, len(shape(node.input[0])), constants)]
    return []


def reduced_axes(node: NodeProto, rank: int, constants: Mapping[str, Any]) -> list[int]:
    """Return the axes that a reduction reduces."""
    given = attributes(node)
    axes = given.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = np.atleast_1d(constants[node.input[1]]).tolist()
    if not axes:
        axes = [] if given.get("noop_with_empty_axes", 0) else range(rank)
    return [int(axis) % rank for axis in axes]


def _vanishing(equation: str) -> list[tuple[int, int]]:
    """Return the places of letters that the result of an Einsum lacks."""
    inner, arrow, outer = equation.replace(" ", "").partition("->")
    found = []
    for i, term in enumerate(inner.split(",")):
        before, _, behind = term.partition("...")
        places = [*enumerate(before), *((k - len(behind), c) for k, c in enumerate(behind))]
        for axis, letter in places:
            if letter not in outer if arrow else inner.count(letter) > 1:
                found.append((i, axis))
    return found
