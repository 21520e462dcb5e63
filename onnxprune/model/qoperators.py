"""QOperators: layers that compute with integers, as float layers between (de)quantising.

``QLinearConv`` and its relatives hold scales and zero points of all they read and write. The same
layer can be written as ``DequantizeLinear``, ``Conv`` and ``QuantizeLinear``, which onnxruntime
takes for the same. Written so, it is a layer like any other: its channels can leave, and what is
left can be fitted. The result is written with the integer operators again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.arrays import Array
from onnxprune.model.model import Model
from onnxprune.model.nodes import attributes, operator, used
from onnxprune.model.shapes import Shapes
from onnxprune.model.storage import with_graph

SINCE = 13
"""Opset that brought scales for each channel."""


@dataclass(frozen=True)
class _Form:
    """How an integer operator reads.

    Attributes:
        op_type: the float operator.
        operands: inputs that hold integers; each is followed by its scale and its zero point.
        result: the input that holds the scale of the output, followed by its zero point.
        axis: the axis of the second operand that may have a scale for each index.
        bias: the input that holds a bias, in units of the product of both scales; -1 for none.
    """

    op_type: str
    operands: tuple[int, ...]
    result: int
    axis: int = 0
    bias: int = -1


_FORMS = {
    "QLinearConv": _Form("Conv", (0, 3), 6, 0, 8),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6, -1),
    "com.microsoft::QGemm": _Form("Gemm", (0, 3), 7, 1, 6),
    "com.microsoft::QLinearAdd": _Form("Add", (0, 3), 6),
    "com.microsoft::QLinearMul": _Form("Mul", (0, 3), 6),
    "com.microsoft::QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "com.microsoft::QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "com.microsoft::QLinearAveragePool": _Form("AveragePool", (0,), 3),
    "com.microsoft::QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "com.microsoft::QLinearConcat": _Form("Concat", (), 0),
}


def separated(model: Model, shapes: Shapes) -> tuple[Model, Shapes]:
    """Write integer operators as float ones where that is the same.

    Args:
        model: the model.
        shapes: its observed shapes.

    Returns:
        The model and the shapes of its tensors; the same objects if there is nothing to write.
    """
    if model.opset < SINCE:
        return model, shapes
    nodes, made, like = list[onnx.NodeProto](), list[onnx.TensorProto](), dict[str, str]()
    for node in model.proto.graph.node:
        writer = _Writer(node, form, model.constants) if (form := _form(node)) else None
        if writer and writer.possible:
            nodes += writer.nodes()
            made += writer.made
            like |= writer.like
        else:
            nodes.append(node)
    if not like:
        return model, shapes
    constants = [*model.proto.graph.initializer, *made]
    proto = with_graph(model.proto, nodes=nodes, constants=constants)
    fixed = {name: tuple(tensor.dims) for name, tensor in model.constants.items()}
    first, second = (_grown(known, fixed, like) for known in (shapes.first, shapes.second))
    return replace(model, proto=proto), replace(shapes, first=first, second=second)


def _grown(
    known: Mapping[str, tuple[int, ...]],
    fixed: Mapping[str, tuple[int, ...]],
    like: Mapping[str, str],
) -> dict[str, tuple[int, ...]]:
    """Add the shapes of tensors that are like others."""
    sizes = {**known, **fixed}
    return {**known, **{name: sizes[o] for name, o in like.items() if o in sizes}}


class _Writer:
    """Writes one integer operator as float ones.

    Attributes:
        made: the initializers that it needs.
        like: the tensors that it makes, and for each one of the same shape.
    """

    def __init__(
        self, node: onnx.NodeProto, form: _Form, constants: Mapping[str, onnx.TensorProto]
    ) -> None:
        self._node, self._constants = node, constants
        self._given = attributes(node)
        if node.op_type == "QLinearConcat":
            form = replace(form, operands=tuple(range(2, len(node.input), 3)))
        if node.op_type == "QGemm" and self._given.get("transB", 0):
            form = replace(form, axis=0)
        self._form = form
        self.made: list[onnx.TensorProto] = []
        self.like: dict[str, str] = {}

    @property
    def possible(self) -> bool:
        """Whether all scales are constants in forms that the float operators take."""
        form = self._form
        fits = self._given.get("alpha", 1.0) == 1.0 or self._node.op_type != "QGemm"
        triples = [*form.operands, *([form.result - 1] if self._name(form.result) else [])]
        return (
            fits
            and not self._given.get("channels_last", 0)
            and bool(form.operands)
            and all(self._fits(i) for i in triples)
        )

    def _name(self, i: int) -> str:
        return self._node.input[i] if 0 <= i < len(self._node.input) else ""

    def _value(self, i: int) -> Array | None:
        tensor = self._constants.get(self._name(i))
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _fits(self, i: int) -> bool:
        """Whether the scale and the zero point behind an input are constants of one size."""
        scale, zero = self._value(i + 1), self._value(i + 2)
        if scale is None or (zero is None and self._name(i + 2)):
            return False
        return scale.ndim < 2 and (zero is None or zero.size == scale.size)

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that compute the same."""
        form, node = self._form, self._node
        result = node.output[0]
        operands = []
        for k, i in enumerate(form.operands):
            operands.append(f"{result}/operand{k}")
            self.like[operands[-1]] = self._name(i)
            read = [n for n in map(self._name, (i, i + 1, i + 2)) if n]
            yield self._converted("DequantizeLinear", read, operands[-1], i + 1)
        if self._name(form.bias):
            operands.append(f"{result}/bias")
            self.like[operands[-1]] = self._name(form.bias)
            scale = self._bias_scale(f"{result}/bias_scale")
            along: dict[str, Any] = {"axis": 0} if scale.dims else {}
            yield helper.make_node(
                "DequantizeLinear", [self._name(form.bias), scale.name], [operands[-1]],
                operands[-1], **along,
            )  # fmt: skip
        whole = not self._name(form.result)
        output = result if whole else f"{result}/float"
        self.like |= {} if whole else {output: result}
        skipped = ("channels_last", "alpha") if node.op_type == "QGemm" else ("channels_last",)
        given = {k: v for k, v in self._given.items() if k not in skipped}
        yield helper.make_node(form.op_type, operands, [output], node.name, **given)
        if not whole:
            read = [n for n in (output, *map(self._name, (form.result, form.result + 1))) if n]
            yield self._converted("QuantizeLinear", read, result, form.result, "/quantised")

    def _converted(
        self, op_type: str, read: list[str], result: str, scale: int, end: str = ""
    ) -> onnx.NodeProto:
        value = self._value(scale)
        by_channel = value is not None and value.size > 1
        along: dict[str, Any] = {"axis": self._form.axis} if by_channel else {}
        return helper.make_node(op_type, read, [result], result + end, **along)

    def _bias_scale(self, name: str) -> onnx.TensorProto:
        """Make the scale of the bias: the product of those of both operands."""
        scale = np.ones(1, dtype=np.float32)
        for i in self._form.operands:
            scale = scale * np.asarray(self._value(i + 1)).reshape(-1)
        tensor = numpy_helper.from_array(scale if scale.size > 1 else scale.reshape(()), name)
        self.made.append(tensor)
        return tensor


def joined(model: Model, like: Model) -> Model:
    """Write float layers as the integer operators again that they were in another model.

    What is no longer between (de)quantising stays as it is: it computes the same.

    Args:
        model: a version of what :func:`separated` made of ``like``.
        like: the model that has the integer operators.
    """
    before = {
        node.output[0]: (node, form) for node in like.proto.graph.node if (form := _form(node))
    }
    if not before:
        return model
    graph = model.proto.graph
    nodes, changed = list[onnx.NodeProto](), False
    for node in graph.node:
        known = before.get(node.output[0])
        again = _joined(node, *known, model) if known else None
        changed |= again is not None
        nodes.append(again or node)
    if not changed:
        return model
    live, needed = used(nodes, (v.name for v in graph.output))
    held = (t for t in graph.initializer if t.name in needed)
    return replace(model, proto=with_graph(model.proto, nodes=live, constants=held))


def _form(node: onnx.NodeProto) -> _Form | None:
    return _FORMS.get(operator(node.op_type, node.domain))


def _joined(
    last: onnx.NodeProto, like: onnx.NodeProto, form: _Form, model: Model
) -> onnx.NodeProto | None:
    """Return an integer operator that computes what a node does; None if there is none."""
    whole = last.op_type != "QuantizeLinear"
    inner = last if whole else model.maker(last.input[0])
    if inner is None or inner.op_type != form.op_type:
        return None
    read = [model.maker(name) for name in inner.input]
    inputs = list(like.input)
    places = form.operands or tuple(range(2, len(like.input), 3))
    if form.bias >= 0 and len(read) > len(places):
        places = (*places, form.bias)
        inputs += [""] * (form.bias + 1 - len(inputs))
    if len(read) != len(places):
        return None
    for i, node in zip(places, read, strict=True):
        if node is None or node.op_type != "DequantizeLinear":
            return None
        given = node.input[:1] if i == form.bias else node.input
        inputs[i : i + len(given)] = given
    if not whole:
        inputs[form.result : form.result + len(last.input) - 1] = last.input[1:]
    result = onnx.NodeProto()
    result.CopyFrom(like)
    result.input[:] = inputs
    now = {a.name: a for a in inner.attribute}
    for attribute in result.attribute:
        if attribute.name in now:
            attribute.CopyFrom(now[attribute.name])
    return result
