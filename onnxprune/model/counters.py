"""Counters: give results whose size depends on the data another size than they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.model.folding import COUNTERS
from onnxprune.model.nodes import attributes
from onnxprune.model.storage import with_graph

FEW = 3
"""Results that every counter is made to give, or one less where it gave that many."""


def recounted(
    proto: onnx.ModelProto, opset: int, shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto | None:
    """Let every operator that counts in the data give few results, but not as many as before.

    What follows cannot be taken to be of one size then, however large or small a count it
    stops at. The values are not those of the model.

    Args:
        proto: a model.
        opset: its version of the default operators.
        shapes: the shapes of its tensors in a run.

    Returns:
        The model, None if it holds no such operator.
    """
    nodes = []
    for node in proto.graph.node:
        if node.op_type in COUNTERS:
            nodes += _Recount(node, opset, shapes).nodes()
        else:
            nodes.append(node)
    if len(nodes) == len(proto.graph.node):
        return None
    return with_graph(proto, nodes=nodes)


class _Recount:
    """What replaces one counter."""

    def __init__(
        self, node: onnx.NodeProto, opset: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._node, self._opset, self._shapes = onnx.NodeProto(), opset, shapes
        self._node.CopyFrom(node)
        self._made: list[onnx.NodeProto] = []
        self._attributes = attributes(node)

    def nodes(self) -> list[onnx.NodeProto]:
        """Return the node, and those that change the number of its results."""
        source = self._node.input[0]
        for k, output in enumerate(self._node.output):
            counts = self._node.op_type != "Unique" or k != 2  # which has a place for each value
            if not output or not counts:
                continue
            axis, filler = self._filler(k, source)
            given = self._shapes.get(output, ())
            count = FEW - 1 if len(given) > axis and given[axis] == FEW else FEW
            raw = f"{output}/counted"
            self._node.output[k] = raw
            joined = self._add("Concat", [raw, *[filler] * FEW], f"{output}/joined", axis=axis)
            self._slice(joined, axis, count, output)
        return [self._node, *self._made]

    def _filler(self, k: int, source: str) -> tuple[int, str]:
        """Return the axis along which output ``k`` counts, and one more result for it."""
        name = f"{self._node.output[k]}/filler"
        if self._node.op_type == "NonZero":
            rank = max(len(self._shapes.get(source, ())), 1)
            return 1, self._constant(name, np.zeros((rank, 1), np.int64))
        if self._node.op_type == "NonMaxSuppression":
            return 0, self._constant(name, np.zeros((1, 3), np.int64))
        if k:  # of Unique: places and counts
            return 0, self._constant(name, np.ones(1, np.int64) * (k == 3))
        axis = self._attributes.get("axis")
        if axis is None:
            flat = self._constant(f"{name}/flat", np.asarray([-1], np.int64))
            source, axis = self._add("Reshape", [source, flat], f"{name}/source"), 0
        axis %= max(len(self._shapes.get(self._node.input[0], ())), 1)
        return axis, self._slice(source, axis, 1, name)

    def _slice(self, source: str, axis: int, count: int, output: str) -> str:
        """Take the first ``count`` along an axis."""
        if self._opset < 10:
            return self._add("Slice", [source], output, axes=[axis], starts=[0], ends=[count])
        operands = [
            self._constant(f"{output}/{word}", np.asarray([value], np.int64))
            for word, value in (("start", 0), ("end", count), ("axis", axis))
        ]
        return self._add("Slice", [source, *operands], output)

    def _constant(self, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
        tensor = numpy_helper.from_array(values, name)
        self._made.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def _add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._made.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output
