"""Operators that change values one by one, with or without broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, Bool
from onnxprune.clean.channels import Channels, channels
from onnxprune.clean.transfers.registry import transfer
from onnxprune.model.edit import node_id

if TYPE_CHECKING:
    from onnxprune.clean.facts import Facts


def _is_inference(node: gs.Node, r: Facts) -> bool:
    """Whether a Dropout passes its input."""
    if r.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None or training.is_empty():
        return True
    return isinstance(training, gs.Constant) and not np.asarray(training.values).any()


@transfer("Identity", "Dropout", "Neg")
def _linear(r: Facts, node: gs.Node) -> None:
    found = r.data(node)
    if found is not None and (node.op != "Dropout" or _is_inference(node, r)):
        r.put(node.outputs[0], found.linear(-1.0 if node.op == "Neg" else 1.0, 0.0))


@transfer("Relu", "LeakyRelu", "Abs")
def _homogeneous(r: Facts, node: gs.Node) -> None:
    """``f(s x) = s f(x)`` for positive ``s``."""
    found = r.data(node)
    states = r.states.get(node_id(node)) if node.op == "Relu" else None
    if found is None and states is not None:
        found = r.of(node.inputs[0].name, states.axis)
    if found is None:
        return
    size = np.where(found.constant, 1.0, np.abs(found.scale))
    root = r.roots.of([found.root, np.sign(found.scale).astype(np.int64)], [found.offset / size])
    value = _constants(r, node, {0: found}, found.constant)
    result = channels(
        found.axis, root, np.where(found.constant, 0.0, size), np.where(found.constant, value, 0.0)
    )
    if states is not None and states.axis == found.axis and len(states.always_on) == len(found):
        on, off = states.always_on, states.always_off
        result = channels(
            found.axis,
            np.where(on, found.root, result.root),
            np.where(off, 0.0, np.where(on, found.scale, result.scale)),
            np.where(off, 0.0, np.where(on, found.offset, result.offset)),
        )
    r.put(node.outputs[0], result)


ANY = (
    "Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Log Mish Reciprocal Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt "
    "Swish Tan Tanh ThresholdedRelu PRelu Pow Max Min Mean Sum Add Sub Mul Div"
).split()


@transfer(*ANY)
def _value_by_value(r: Facts, node: gs.Node) -> None:
    """What is computed alike from the same is the same; constants are computed."""
    met = _aligned(r, node)
    if met is None:
        return
    axis, inputs = met
    parts = list(inputs.values())
    exact = [p.root for p in parts]
    close = [v for p in parts for v in (p.scale, p.offset)]
    constant = np.logical_and.reduce([p.constant for p in parts])
    arithmetic = ARITHMETIC.get(node.op)
    result = None
    if arithmetic and len(parts) == 2 and r.is_float(node.outputs[0].name):
        result = arithmetic(r, parts)
    if result is None:
        root = r.roots.of(exact, close)
        result = channels(axis, root, np.where(constant, 0.0, 1.0), np.zeros(1))
    if constant.any():
        variable = {i: p for i, p in inputs.items() if node.inputs[i].name not in r.values}
        value = _constants(r, node, variable, constant)
        result = channels(
            axis,
            result.root,
            np.where(constant, 0.0, result.scale),
            np.where(constant, value, result.offset),
        )
    r.put(node.outputs[0], Channels(axis, result.root, result.scale, result.offset))


def _constants(r: Facts, node: gs.Node, variable: Mapping[int, Channels], constant: Bool) -> F64:
    """Compute the output where all inputs are constant, ``float64 [channels]``."""
    rank = len(r.shape(node.outputs[0].name))
    if not constant.any() or not variable:
        return np.zeros(len(constant))
    axis = next(iter(variable.values())).axis
    return r.evaluated(node, variable, axis - rank)


def _aligned(r: Facts, node: gs.Node) -> tuple[int, dict[int, Channels]] | None:
    """Return the channel axis of the output and the inputs' channels along it."""
    rank = len(r.shape(node.outputs[0].name))
    places = [i for i, t in enumerate(node.inputs) if not t.is_empty()]
    if not all(r.shapes.has(node.inputs[i].name) or node.inputs[i].name in r.values
               for i in places):  # fmt: skip
        return None
    known = [(node.inputs[i].name, c) for i in places if (c := r.known(node.inputs[i].name))]
    if not known:
        return None
    name, first = known[0]
    axis = first.axis + rank - len(r.shape(name))
    size = len(first)
    if r.shape(node.outputs[0].name)[axis] != size:
        return None
    found = {}
    for i in places:
        name = node.inputs[i].name
        own = axis - (rank - len(r.shape(name)))
        if own >= 0 and r.shape(name)[own] == size:
            one = r.of(name, own)
        else:
            shared = _shared(r, name, own)
            one = shared.take(np.zeros(size, dtype=np.int64))
        found[i] = Channels(axis, one.root, one.scale, one.offset)
    return axis, found


def _shared(r: Facts, name: str, axis: int) -> Channels:
    """Return an operand that is the same for all channels, as one channel."""
    if axis >= 0:
        return r.of(name, axis)
    value = r.values.get(name)
    if value is not None and (value == value.reshape(-1)[:1]).all():
        return channels(0, r.roots.fresh(1), np.zeros(1), value.reshape(-1)[:1].astype(np.float64))
    return channels(0, r.roots.fresh(1), np.ones(1), np.zeros(1))


def _sum(r: Facts, a: Channels, b: Channels) -> Channels:
    same = a.root == b.root
    safe = np.where(a.constant, 1.0, a.scale)
    both = r.roots.of([a.root, b.root], [b.scale / safe])
    root = np.where(same | b.constant, a.root, np.where(a.constant, b.root, both))
    scale = np.where(same, a.scale + b.scale, np.where(a.constant, b.scale, a.scale))
    return channels(a.axis, root, scale, a.offset + b.offset)


def _product(r: Facts, a: Channels, b: Channels) -> Channels:
    safe = [np.where(p.constant, 1.0, p.scale) for p in (a, b)]
    both = r.roots.of([a.root, b.root], [p.offset / s for p, s in zip((a, b), safe, strict=True)])
    root = np.where(b.constant, a.root, np.where(a.constant, b.root, both))
    scale = np.where(
        b.constant, a.scale * b.offset, np.where(a.constant, b.scale * a.offset, safe[0] * safe[1])
    )
    return channels(a.axis, root, scale, np.where(a.constant | b.constant, a.offset * b.offset, 0))


def _quotient(r: Facts, a: Channels, b: Channels) -> Channels | None:
    if not b.constant.all() or (b.offset == 0).any():
        return None
    return _product(r, a, channels(b.axis, b.root, np.zeros(1), 1 / b.offset))


ARITHMETIC: dict[str, Callable[[Facts, list[Channels]], Channels | None]] = {
    "Add": lambda r, p: _sum(r, p[0], p[1]),
    "Sum": lambda r, p: _sum(r, p[0], p[1]),
    "Sub": lambda r, p: _sum(r, p[0], p[1].linear(-1.0, 0.0)),
    "Mul": lambda r, p: _product(r, p[0], p[1]),
    "Div": lambda r, p: _quotient(r, p[0], p[1]),
}
