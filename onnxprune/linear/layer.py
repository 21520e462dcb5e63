"""Layer: a layer with weights, in a form in which its weights and its bias can be replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, I64, Array, Bool
from onnxprune.linear.bias import (
    bias_shape,
    found_bias,
    given_bias,
    is_own,
    own_bias,
    takes_bias,
)
from onnxprune.linear.matrix_form import MatrixForm, StackForm, matrix_form
from onnxprune.linear.requantise import unpack
from onnxprune.model.edit import edit, is_output, node_id, rebuild
from onnxprune.model.model import Model
from onnxprune.model.nodes import captured
from onnxprune.model.shapes import Shapes
from onnxprune.plans.cut import Cut
from onnxprune.structure.structure import PRODUCTS, Structure, Weight

SPARSE = 0.1
"""Share of zeros from which the zeros of a weight tensor are taken to be meant."""


@dataclass(frozen=True)
class Layer:
    """A layer of a pruned model whose weights and bias are constants of their own.

    Attributes:
        node: the node's identity in the original model.
        form: how it reads as a matrix product.
        data: name of its input, the same in both models.
        output: name of its output including the bias, the same in both models.
        weight: name of its weight constant in the pruned model.
        bias: name of its bias constant there.
        bias_shape: shape of that constant.
        alpha: what the node multiplies its weights by.
        kept: of each output axis that shrinks, ``int64``, the original's indices that stay.
        support: ``bool`` of the weight's shape, weights that may differ from zero, or None.
        shared: whether other nodes use the same weight, so that only the bias may change.
        cut: whether it sums over less than in the original.
        skip: name of a variable that is added to the output, if there is one.
        bounds: the lowest and the highest value of the output, that variable added, that makes
            a difference: whatever reads it is a rectifier; infinite where there is none.
        fixed: ``float64 [outputs]``, what is added where no bias of its own can be: then ``bias``
            names nothing; else None.
    """

    node: str
    form: MatrixForm | StackForm
    data: str
    output: str
    weight: str
    bias: str
    bias_shape: tuple[int, ...]
    alpha: float
    kept: Mapping[int, I64]
    support: Bool | None
    shared: bool
    cut: bool
    skip: str | None
    bounds: tuple[float, float]
    fixed: F64 | None = None

    def staying(self, values: Array) -> Array:
        """Take the channels that stay.

        Args:
            values: what the layer gives in the original, of that output's shape.
        """
        for axis, index in self.kept.items():
            values = values.take(index, axis=axis)
        return values


def has_layers(structure: Structure) -> bool:
    """Whether a model has layers that can be fitted: those of fused operators cannot."""
    return any(map(_is_product, structure.weights))


def _is_product(weight: Weight) -> bool:
    """Whether a layer can be written as matrices."""
    known = weight.op_type in (*PRODUCTS, "Einsum")
    return known and (weight.output_axis is not None or weight.letters is not None)


def prepare(pruned: Model, cut: Cut, *, grow: bool = True) -> tuple[Model, list[Layer]]:
    """Give every layer a bias of its own; return the model and its layers in order.

    The model computes the same as before, with floats where it had integers for weights and
    biases (see :mod:`onnxprune.linear.requantise`). Left out are the layers that were excluded and
    those that do not exist any more or whose shapes are unknown.

    Args:
        pruned: the pruned model.
        cut: what left the original.
        grow: whether there may be more constants then; if not, a layer whose bias is missing or
            shared keeps what is added to it.
    """
    graph = edit(pruned)
    unpack(graph)
    nodes = {node_id(node): node for node in graph.nodes}
    order = {name: k for k, name in enumerate(nodes)}
    shapes = cut.shapes
    weights = [
        w
        for w in cut.structure.weights
        if w.node in nodes
        and nodes[w.node].op == w.op_type
        and _is_product(w)
        and any(t.name == w.data_tensor for t in nodes[w.node].inputs)
        and w.tensor not in cut.structure.excluded
        and shapes.has(w.node)
        and shapes.has(w.data_tensor)
        and isinstance(nodes[w.node].inputs[w.input], gs.Constant)
        and takes_bias(graph, nodes[w.node])
    ]
    layers = [
        _layer(graph, nodes[w.node], w, cut, grow)
        for w in sorted(weights, key=lambda w: order[w.node])
        if grow or not _varies(nodes[w.node])
    ]
    return rebuild(graph, pruned), layers


def _layer(
    graph: gs.Graph,
    node: gs.Node,
    weight: Weight,
    cut: Cut,
    grow: bool,
) -> Layer:
    kept = cut.kept
    tensor = node.inputs[weight.input]
    shared = len(tensor.outputs) > 1
    values = np.asarray(tensor.values)
    form: MatrixForm | StackForm
    there, output = None, node.outputs[0]
    if weight.output_axis is not None:
        form = matrix_form(node, weight, values.shape)
        broadcast = bias_shape(weight, form.outputs * form.groups)
        there, output = found_bias(graph, node, broadcast)
    else:
        assert weight.letters is not None
        form = StackForm(weight.letters, values.shape)
        broadcast = form.bias_shape
    outputs = form.outputs * form.groups
    fixed, name, shape = None, "", (outputs,)
    if grow or is_own(there, outputs):
        bias, output = own_bias(graph, node, weight, broadcast, values.dtype)
        name, shape = bias.name, tuple(bias.values.shape)
    else:
        fixed = _added(there, node, outputs)
    skip = _skip(graph, output, cut.shapes)
    support = _sliced(cut.plan.masks.get(weight.tensor), weight, kept)
    if support is None and SPARSE < np.mean(values == 0) < 1:  # all zeros: to be fitted
        support = values != 0
    return Layer(
        node=weight.node,
        form=form,
        data=weight.data_tensor,
        output=output.name,
        weight=tensor.name,
        bias=name,
        bias_shape=shape,
        alpha=float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0,
        kept={
            k: np.flatnonzero(kept[v]) for k, v in weight.output_axes.items() if not kept[v].all()
        },
        support=support,
        shared=shared,
        cut=_is_cut(weight, cut),
        skip=skip,
        bounds=_bounds(graph, output.outputs[0].outputs[0] if skip else output),
        fixed=fixed,
    )


def _varies(node: gs.Node) -> bool:
    """Whether a node adds something to its outputs that is no constant for each channel."""
    given = given_bias(node)
    if given is None or not isinstance(given, gs.Constant):
        return given is not None
    return any(n > 1 for n in given.shape[:-1])


def _added(bias: gs.Tensor | None, node: gs.Node, outputs: int) -> F64:
    """Return what a bias adds to each output channel, ``float64 [outputs]``."""
    if bias is None:
        return np.zeros(outputs)
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" and bias in node.inputs else 1.0
    return np.broadcast_to(np.asarray(bias.values, np.float64).reshape(-1) * beta, (outputs,))


def _sliced(mask: Bool | None, weight: Weight, kept: Bool) -> Bool | None:
    """Cut what has left out of a mask of the original weight."""
    if mask is None:
        return None
    for axis, labels in weight.axes.items():
        mask = mask.compress(kept[labels], axis=axis)
    return mask


def _is_cut(weight: Weight, cut: Cut) -> bool:
    mask = cut.plan.masks.get(weight.tensor)
    masked = mask is not None and not mask.all()
    summed = [weight.data_labels] if weight.data_labels is not None else []
    if weight.letters is not None:
        _, own, output = weight.letters
        summed = [labels for axis, labels in weight.axes.items() if own[axis] not in output]
    return masked or not all(cut.kept[labels].all() for labels in summed)


def _skip(graph: gs.Graph, output: gs.Tensor, shapes: Shapes) -> str | None:
    """Find the variable of the same shape that is added to a layer's output and nothing else."""
    readers = list(output.outputs)
    if len(readers) != 1 or readers[0].op != "Add" or is_output(graph, output):
        return None
    others = [t for t in readers[0].inputs if t is not output]
    if len(others) != 1 or not isinstance(others[0], gs.Variable):
        return None
    name = str(others[0].name)
    if not (shapes.has(name) and shapes.has(output.name)):
        return None
    return name if shapes.sizes(name) == shapes.sizes(output.name) else None


def _bounds(graph: gs.Graph, tensor: gs.Tensor) -> tuple[float, float]:
    """Find between which values a tensor makes a difference to what reads it."""
    if is_output(graph, tensor) or not tensor.outputs:
        return -np.inf, np.inf
    passed = [_passed(node) for node in tensor.outputs]
    return min(low for low, _ in passed), max(high for _, high in passed)


def _passed(node: gs.Node) -> tuple[float, float]:
    """Return between which values an operator tells its inputs apart."""
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op == "QuantizeLinear":
        return _quantised_range(node)
    if node.op == "Clip":
        limits = [node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)]
        for k, given in enumerate(node.inputs[1:3]):
            if not given.is_empty():
                if not isinstance(given, gs.Constant):
                    return -np.inf, np.inf
                limits[k] = float(np.asarray(given.values).reshape(()))
        return float(limits[0]), float(limits[1])
    return -np.inf, np.inf


def _quantised_range(node: gs.Node) -> tuple[float, float]:
    """Return the range of what integers of 8 bits can stand for: beyond it they are clipped."""
    given = node.inputs[1:3]
    if len(given) < 2 or not all(isinstance(t, gs.Constant) and t.values.size == 1 for t in given):
        return -np.inf, np.inf
    scale, zero = (np.asarray(t.values).reshape(()) for t in given)
    if zero.dtype not in (np.int8, np.uint8):
        return -np.inf, np.inf
    limits = np.iinfo(zero.dtype.name)
    low, high = ((float(v) - float(zero)) * float(scale) for v in (limits.min, limits.max))
    return low, high


def affected(model: Model, layers: Sequence[Layer], changed: Collection[str] = ()) -> list[Layer]:
    """Return the layers whose sums changed, those behind such a layer, and what pairs with them.

    Args:
        model: the prepared pruned model.
        layers: its layers, in order.
        changed: further tensors that are not what they were.
    """
    changed = {*changed, *(layer.output for layer in layers if layer.cut)}
    for node in model.proto.graph.node:
        if any(name in changed for name in [*node.input, *captured(node)]):
            changed.update(node.output)
    found = {layer.node for layer in layers if layer.cut or layer.output in changed}
    found |= {first.node for node, first in pairs(model, layers).items() if node in found}
    return [layer for layer in layers if layer.node in found]


def pairs(model: Model, layers: Sequence[Layer]) -> dict[str, Layer]:
    """Find layers that follow each other with nothing but a rectifier in between.

    Nothing else reads what the first one gives, or what the rectifier lets through. Stacks of
    matrices are not among them.

    Args:
        model: the prepared model.
        layers: its layers.

    Returns:
        The first layer of each pair by the node of the second.
    """
    graph = model.proto.graph
    readers = Counter(n for node in graph.node for n in [*node.input, *captured(node)])
    readers.update(spec.name for spec in graph.output)
    rectifiers = {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("Relu", "Clip")}
    single = [layer for layer in layers if isinstance(layer.form, MatrixForm)]
    by_output = {layer.output: layer for layer in single if np.isfinite(layer.bounds).any()}
    found = {la.node: by_output.get(rectifiers.get(la.data, "")) for la in single}
    return {
        layer.node: first
        for layer in single
        if (first := found[layer.node]) is not None
        and readers[first.output] == readers[layer.data] == 1
        and not (first.shared or layer.shared)
        and first.fixed is None is layer.fixed
    }
