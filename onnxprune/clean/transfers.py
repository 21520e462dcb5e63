"""What operators make of channels: a few families that know which of them stay equal or constant.

A function looks at what :class:`~onnxprune.clean.facts.Facts` knows of the inputs and puts what
follows for the outputs. To add an operator: its name at a family, or one function here;
``tests/clean/test_relations.py`` compares everything that is said with what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import I64, Array
from onnxprune.clean.channels import UNREAD, ZERO
from onnxprune.linear.matrix_form import by_channel, is_padded, matrix_form
from onnxprune.model.edit import node_id
from onnxprune.structure.structure import PRODUCTS

if TYPE_CHECKING:
    from onnxprune.clean.facts import Facts

Transfer = Callable[["Facts", gs.Node], None]
TRANSFERS: dict[str, Transfer] = {}


def _transfer(*op_types: str) -> Callable[[Transfer], Transfer]:
    """Register a function for operators."""

    def register(function: Transfer) -> Transfer:
        TRANSFERS.update(dict.fromkeys(op_types, function))
        return function

    return register


def constant_input(node: gs.Node, i: int) -> Array | None:
    """Return the value of input ``i`` of a node; None if it has none or that is computed."""
    if len(node.inputs) <= i or not isinstance(node.inputs[i], gs.Constant):
        return None
    return np.asarray(node.inputs[i].values)


def ints(node: gs.Node, i: int, attribute: str) -> list[int] | None:
    """Return integers that older opsets hold in an attribute and newer ones in input ``i``."""
    value = node.attrs.get(attribute, constant_input(node, i))
    return None if value is None else [int(v) for v in np.atleast_1d(value)]


# -- layers ------------------------------------------------------------------------------------


@_transfer(*PRODUCTS)
def _layer(r: Facts, node: gs.Node) -> None:
    """Equal rows of weights, with equal biases, make the same of the same inputs."""
    weight = r.weights.get(node_id(node))
    values = r.values.get(node.inputs[weight.input].name) if weight else None
    if weight is None or weight.output_axis is None or weight.packed or values is None:
        return
    form = matrix_form(node, weight, values.shape)
    count = form.groups * form.outputs
    bias: Array | None = np.zeros(1)
    if node.op != "MatMul" and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        bias = r.values.get(node.inputs[2].name)
        if bias is not None and bias.shape not in ((), (1,), (1, 1), (count,), (1, count)):
            return
    if bias is None:
        return
    axis = weight.data_axis % len(r.shape(weight.data_tensor))
    x = r.numbers.mapped(r.of(weight.data_tensor, axis), padded=is_padded(node))
    x = x.reshape(form.groups, 1, 1, -1)
    matrix = np.where(x == ZERO, values.dtype.type(0), by_channel(form, values))
    constant = ~((matrix != 0) & (x >= 0)).any(axis=(2, 3)).reshape(-1)
    same = r.numbers.of(
        r.numbers.rows(matrix.reshape(count, -1)),
        np.repeat(r.numbers.rows(x.reshape(form.groups, -1)), form.outputs),
        np.broadcast_to(r.numbers.constants(bias.reshape(-1)), count),
    )
    axis = weight.output_axis % len(r.shape(node.outputs[0].name))
    r.put(node.outputs[0], axis, np.where(constant, UNREAD, same))


# -- value by value ----------------------------------------------------------------------------

POINTWISE = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu PRelu Pow Max Min "
    "Mean Sum Add Sub Mul Div"
).split()


@_transfer(*POINTWISE)
def _value_by_value(r: Facts, node: gs.Node) -> None:
    """What is computed from the same is the same, and constant if that is."""
    states = r.states.get(node_id(node)) if node.op == "Relu" else None
    met = _aligned(r, node, states.axis if states else None)
    if met is None:
        return
    axis, inputs = met
    constant = np.all([own < 0 for own in inputs], axis=0)
    made = np.where(constant, UNREAD, r.numbers.of(*inputs))
    if node.op == "Mul":
        made[np.any([own == ZERO for own in inputs], axis=0)] = ZERO
    if states is not None and states.axis == axis and len(states.always_on) == len(made):
        made = np.where(states.always_on, inputs[0], made)
        made[states.always_off] = ZERO
    r.put(node.outputs[0], axis, made)


def _aligned(r: Facts, node: gs.Node, default: int | None) -> tuple[int, list[I64]] | None:
    """Return the channel axis of the output, and the inputs' channels along it.

    The axis is that of the first input of which something is known, else a default.
    """
    shape = r.shape(node.outputs[0].name)
    names = [t.name for t in node.inputs if not t.is_empty()]
    if not all(map(r.has, names)):
        return None
    behind = [len(shape) - len(r.shape(name)) for name in names]
    places = [c.axis + k for n, k in zip(names, behind, strict=True) if (c := r.known(n))]
    axis = places[0] if places else default
    if axis is None:
        return None
    inputs = [r.of(name, max(axis - k, -1)) for name, k in zip(names, behind, strict=True)]
    if not all(len(own) in (1, shape[axis]) for own in inputs):
        return None
    return axis, [np.broadcast_to(own, shape[axis]) for own in inputs]


@_transfer("BatchNormalization")
def _batch_norm(r: Facts, node: gs.Node) -> None:
    training = len([t for t in node.outputs if not t.is_empty()]) > 1
    if (
        training
        or node.attrs.get("training_mode", 0)
        or not all(r.has(t.name) for t in node.inputs)
    ):
        return
    if len(r.shape(node.inputs[0].name)) > 1:
        own = [r.of(t.name, int(i == 0)) for i, t in enumerate(node.inputs)]
        constant = ((own[0] < 0) | (own[1] == ZERO)) & np.all([v < 0 for v in own[1:]], axis=0)
        r.put(node.outputs[0], 1, np.where(constant, UNREAD, r.numbers.of(*own)))


# -- positions of one channel ------------------------------------------------------------------


@_transfer("MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Upsample")
def _resample(r: Facts, node: gs.Node) -> None:
    """One function of every map, that gives a constant back unless it reads what is around."""
    found = r.known(node.inputs[0].name)
    mode = node.attrs.get("coordinate_transformation_mode", "")
    padded = node.op == "AveragePool" and (
        node.attrs.get("count_include_pad", 0) or node.attrs.get("ceil_mode", 0)
    )
    if found is not None and (found.axis == 1 or "Pool" not in node.op):
        outside = padded or mode in ("tf_crop_and_resize", b"tf_crop_and_resize")
        r.put(node.outputs[0], found.axis, r.numbers.mapped(found.numbers, padded=bool(outside)))


@_transfer("ReduceMean", "ReduceMax", "ReduceSum")
def _reduce(r: Facts, node: gs.Node) -> None:
    found, axes = r.known(node.inputs[0].name), ints(node, 1, "axes")
    if found is None or not axes:
        return
    over = {k % len(r.shape(node.inputs[0].name)) for k in axes}
    if found.axis not in over:
        gone = 0 if node.attrs.get("keepdims", 1) else sum(k < found.axis for k in over)
        made = r.numbers.mapped(found.numbers, padded=node.op == "ReduceSum")
        r.put(node.outputs[0], found.axis - gone, made)


@_transfer("Transpose")
def _transpose(r: Facts, node: gs.Node) -> None:
    found = r.known(node.inputs[0].name)
    if found is not None:
        rank = len(r.shape(node.inputs[0].name))
        order = [int(k) for k in node.attrs.get("perm", range(rank)[::-1])]
        r.put(node.outputs[0], order.index(found.axis), r.numbers.mapped(found.numbers))


@_transfer("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(r: Facts, node: gs.Node) -> None:
    """The channels stay an axis, or merge with others of fixed size into one."""
    source, target = node.inputs[0].name, node.outputs[0].name
    found = r.known(source)
    if found is None:
        return
    views = [(shapes[source], shapes[target]) for shapes in (r.shapes.first, r.shapes.second)]
    merged = [_merged(a, b, found.axis) for a, b in views]
    if merged[0] is None or merged[0] != merged[1]:
        return
    axis, before, after = merged[0]
    outer, own, inner = np.indices((before, len(found.numbers), after)).reshape(3, -1)
    wide = found.numbers[own]
    made = np.where(wide < 0, wide, r.numbers.of(wide, outer * after + inner))
    r.put(node.outputs[0], axis, made)


def _merged(
    inner: tuple[int, ...], outer: tuple[int, ...], axis: int
) -> tuple[int, int, int] | None:
    """Return where an axis goes to, and how much of other axes runs outside and inside it."""
    before, after = int(np.prod(inner[:axis])), int(np.prod(inner[axis + 1 :]))
    for place, size in enumerate(outer):
        outside, inside = int(np.prod(outer[:place])), int(np.prod(outer[place + 1 :]))
        if not outside or not inside or before % outside or after % inside:
            continue
        if before // outside * inner[axis] * (after // inside) == size:
            return place, before // outside, after // inside
    return None


# -- channels that move ------------------------------------------------------------------------


@_transfer("Concat")
def _concat(r: Facts, node: gs.Node) -> None:
    axis = int(node.attrs["axis"]) % len(r.shape(node.outputs[0].name))
    names = [t.name for t in node.inputs]
    known = [c for n in names if (c := r.known(n)) is not None]
    if not known or not all(map(r.has, names)):
        return
    if any(c.axis == axis for c in known):
        r.put(node.outputs[0], axis, np.concatenate([r.of(n, axis) for n in names]))
        return
    parts = [r.of(n, known[0].axis) for n in names]
    constant = np.all([(p < 0) & (p == parts[0]) for p in parts], axis=0)
    r.put(node.outputs[0], known[0].axis, np.where(constant, parts[0], r.numbers.of(*parts)))


@_transfer("Split")
def _split(r: Facts, node: gs.Node) -> None:
    found = r.known(node.inputs[0].name)
    if found is None or any(t.is_empty() for t in node.outputs):
        return
    axis = int(node.attrs.get("axis", 0)) % len(r.shape(node.inputs[0].name))
    start = 0
    for output in node.outputs:
        if axis != found.axis:
            r.put(output, found.axis, r.numbers.mapped(found.numbers))
            continue
        size = r.shape(output.name)[axis]
        r.put(output, axis, found.numbers[start : start + size])
        start += size


@_transfer("Slice")
def _slice(r: Facts, node: gs.Node) -> None:
    found = r.known(node.inputs[0].name)
    starts, ends = ints(node, 1, "starts"), ints(node, 2, "ends")
    if found is None or starts is None or ends is None:
        return
    if any(constant_input(node, i) is None for i in range(3, len(node.inputs))):
        return
    rank = len(r.shape(node.inputs[0].name))
    axes = ints(node, 3, "axes") or list(range(len(starts)))
    steps = ints(node, 4, "steps") or [1] * len(axes)
    numbers = found.numbers
    if any(axis % rank != found.axis for axis in axes):
        numbers = r.numbers.mapped(numbers)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=False):
        if axis % rank == found.axis:
            stop = None if step < 0 and end < -len(numbers) else end
            numbers = numbers[start:stop:step]
    r.put(node.outputs[0], found.axis, numbers)


@_transfer("Gather")
def _gather(r: Facts, node: gs.Node) -> None:
    """Constant indices into the channels."""
    found, index = r.known(node.inputs[0].name), constant_input(node, 1)
    if found is None or index is None or index.ndim != 1:
        return
    if int(node.attrs.get("axis", 0)) % len(r.shape(node.inputs[0].name)) == found.axis:
        r.put(node.outputs[0], found.axis, found.numbers[index])


@_transfer("Pad")
def _pad(r: Facts, node: gs.Node) -> None:
    """Zeros around the maps, and around the channels."""
    found, pads = r.known(node.inputs[0].name), ints(node, 1, "pads")
    given = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    fill = constant_input(node, 2) if given else np.asarray(node.attrs.get("value", 0.0))
    if found is None or pads is None or len(node.inputs) > 3 or fill is None or fill.any():
        return
    rank = len(r.shape(node.inputs[0].name))
    sides = pads[found.axis], pads[found.axis + rank]
    zeros = node.attrs.get("mode", "constant") in ("constant", b"constant")
    if min(sides) < 0 or (any(sides) and not zeros):
        return
    around = any(p for k, p in enumerate(pads) if k % rank != found.axis)
    numbers = r.numbers.mapped(found.numbers, padded=zeros and around)
    r.put(node.outputs[0], found.axis, np.pad(numbers, sides, constant_values=ZERO))
