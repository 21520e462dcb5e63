"""Facts: what is known of the channels of a model's tensors, and where it is written down.

:mod:`onnxprune.clean.relations` fills them in, in one walk over the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

from onnxprune.arrays import F64, Array, Bool
from onnxprune.clean.channels import NOTHING, Channels, Roots, channels
from onnxprune.errors import ModelError
from onnxprune.measure.entropy import Activity
from onnxprune.model.edit import node_id
from onnxprune.model.model import Model
from onnxprune.model.session import Session
from onnxprune.model.shapes import Shapes
from onnxprune.structure.structure import PRODUCTS, Structure

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


@dataclass(frozen=True)
class States:
    """What a rectifier did on samples: ``bool [channels]`` along ``axis`` of its output."""

    axis: int
    always_off: Bool
    always_on: Bool


class Facts:
    """What is known of the channels of a model's tensors.

    Args:
        model: the traced model.
        shapes: its observed shapes.
        structure: the result of tracing it.
        states: of Relu nodes by their first output; what was always on or off on some samples is
            taken to be so always.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        structure: Structure,
        states: Mapping[str, States] | None = None,
    ) -> None:
        self.shapes = shapes
        self.opset = model.opset
        self.roots = Roots()
        self.states = states or {}
        self.weights = {w.node: w for w in structure.weights if w.op_type in PRODUCTS}
        self.values = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
        self._model = model
        self._types = model.types
        self._nodes = {next((o for o in n.output if o), ""): n for n in model.proto.graph.node}
        self._known: dict[str, Channels] = {}
        self._fresh: dict[tuple[str, int], Channels] = {}

    # -- what is known -----------------------------------------------------------------------

    def known(self, tensor: str) -> Channels | None:
        """Return what was found about a tensor, along whichever axis."""
        return self._known.get(tensor)

    def of(self, tensor: str, axis: int) -> Channels:
        """Return the channels along an axis of a tensor; functions of their own if unknown."""
        axis %= max(len(self.shape(tensor)), 1)
        found = self._known.get(tensor)
        if found is not None and found.axis == axis:
            return found
        if (tensor, axis) not in self._fresh:
            count = self.shape(tensor)[axis]
            value = self.values.get(tensor)
            made = (
                channels(axis, self.roots.fresh(count), np.ones(1), np.zeros(1))
                if value is None
                else self._of_constant(value, axis)
            )
            self._fresh[tensor, axis] = made
        return self._fresh[tensor, axis]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a constant, or the first observed one."""
        value = self.values.get(tensor)
        return self.shapes.sizes(tensor) if value is None else value.shape

    def _of_constant(self, value: Array, axis: int) -> Channels:
        if not value.size:
            count = value.shape[axis]
            return channels(axis, self.roots.fresh(count), np.ones(1), np.zeros(1))
        rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
        rows = rows.astype(np.float64)
        flat = (rows == rows[:, :1]).all(axis=1)
        same = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
        root = self.roots.fresh(int(same.max(initial=-1)) + 1)[same]
        return channels(axis, root, np.where(flat, 0.0, 1.0), np.where(flat, rows[:, 0], 0.0))

    # -- what transfer functions use -----------------------------------------------------------

    def put(self, tensor: gs.Tensor, found: Channels | None) -> None:
        """Say what the channels of an output are; those that are not finite count as unknown."""
        if found is None or tensor.is_empty():
            return
        shape = self.shape(tensor.name)
        if len(shape) <= found.axis or shape[found.axis] != len(found):
            return
        finite = np.isfinite(found.scale) & np.isfinite(found.offset)
        if not finite.all():
            root = np.where(finite, found.root, self.roots.fresh(len(found)))
            scale, offset = np.where(finite, found.scale, 1.0), np.where(finite, found.offset, 0.0)
            found = channels(found.axis, root, scale, offset)
        self._known[tensor.name] = found

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor is known to hold floating-point numbers."""
        kind = self._types.get(tensor)
        element = kind.tensor_type.elem_type if kind is not None else 0
        value = self.values.get(tensor)
        return element in FLOATS or (value is not None and value.dtype.kind == "f")

    def data(self, node: gs.Node) -> Channels | None:
        """Return what is known of the first input."""
        return self.known(node.inputs[0].name) if node.inputs else None

    def renamed(self, found: Channels, axis: int | None = None) -> Channels:
        """Return the channels after the same linear map of each that keeps constants."""
        root = np.where(found.constant, NOTHING, self.roots.of([found.root], []))
        place = found.axis if axis is None else axis
        return Channels(place, root, found.scale, found.offset)

    def evaluated(self, node: gs.Node, inputs: Mapping[int, Channels], axis: int) -> F64:
        """Run a node on constants, ``float64 [channels]``; NaN where that is not possible.

        Args:
            node: a node that works value by value.
            inputs: its variable inputs, whose offsets are fed.
            axis: the axis of the channels, negative.
        """
        proto = self._nodes[node_id(node)]
        size = len(next(iter(inputs.values())))
        feeds, given, made = {}, [], []
        copy = onnx.NodeProto()
        copy.CopyFrom(proto)
        for i, found in inputs.items():
            kind = self._types.get(proto.input[i])
            if kind is None or not kind.tensor_type.elem_type:
                return np.full(size, np.nan)
            copy.input[i] = f"input{i}"
            dtype = helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
            feeds[f"input{i}"] = found.offset.astype(dtype).reshape(-1, *[1] * (-axis - 1))
            shape = list(feeds[f"input{i}"].shape)
            given.append(
                helper.make_tensor_value_info(f"input{i}", kind.tensor_type.elem_type, shape)
            )
        made = [
            numpy_helper.from_array(self.values[n], n)
            for n in dict.fromkeys(copy.input)
            if n in self.values
        ]
        output = helper.make_empty_tensor_value_info(copy.output[0])
        graph = helper.make_graph([copy], "constants", given, [output], made)
        source = self._model.proto
        whole = helper.make_model(
            graph, opset_imports=source.opset_import, ir_version=max(source.ir_version, 4)
        )
        try:
            result = Session(whole, threads=1, optimize=False).run(feeds, [copy.output[0]])[0]
        except ModelError:
            return np.full(size, np.nan)
        values = result.astype(np.float64).reshape(-1)
        return values if values.size == size else np.full(size, np.nan)


def relu_states(found: Sequence[Activity]) -> dict[str, States]:
    """Return what Relu nodes always did, by their first output, for the clean-up."""
    return {
        a.rectifier.output: States(a.rectifier.axis, a.always_off, a.always_on)
        for a in found
        if a.rectifier.op_type == "Relu"
    }
