"""The registry: one small rule per ONNX operator, saying how labels pass through it.

A rule takes an :class:`~onnxprune.op.Op` and uses its vocabulary: ``take`` an input axis,
``give`` an output axis, ``tie`` axes that shrink together, ``freeze`` what cannot, begin
labels at an ``origin``, and record constant ``site``s, ``sink``s and ``sizes`` to rewrite. Layout
operators run *themselves* on labels. An axis that a rule does not take is frozen by the
caller, and so is everything an operator without a rule touches.

To add an operator: one rule here (a plain activation is one word in :data:`UNARY`), and one
case in ``tests/cases.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.labels import I64
from onnxprune.op import MEETS_FIXED, Op

Rule = Callable[[Op], None]
RULES: dict[str, Rule] = {}


def rule(*types: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the default domain."""

    def register(function: Rule) -> Rule:
        for op_type in types:
            if op_type in RULES:
                raise ValueError(f"two rules for {op_type}")
            RULES[op_type] = function
        return function

    return register


# -- element-wise and broadcasting ---------------------------------------------------------

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh "
    "Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log "
    "Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Swish Tan Tanh ThresholdedRelu"
).split()

BROADCAST = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
).split()


@rule(*UNARY)
def unary(op: Op) -> None:
    """Values change one by one: every axis of input 0 passes to every output."""
    for axis in range(len(op.shape(0))):
        labels = op.take(0, axis)
        for o in range(len(op.node.outputs)):
            op.give(axis, labels, o)


@rule(*BROADCAST)
def broadcast(op: Op) -> None:
    """Inputs are aligned at their last axes; axes that meet are tied, constants sliced."""
    out = op.out_shape()
    for axis in range(len(out)):
        op.give(axis, join(op, axis, out, list(op.inputs)))


def join(op: Op, axis: int, out: tuple[int, ...], inputs: list[int]) -> I64 | None:
    """Tie output axis ``axis`` over all ``inputs`` (numpy broadcasting) and return its labels."""
    met: list[I64 | None] = []
    constants: list[tuple[int, int]] = []
    for i in inputs:
        own = axis - (len(out) - len(op.shape(i))) if op.has(i) else -1
        if own < 0:
            continue
        labels = op.take(i, own)
        if op.shape(i)[own] != out[axis]:
            op.freeze(labels, "is spread over another axis by broadcasting")
        elif op.is_constant(i):
            constants.append((i, own))
        elif out[axis] != 1:
            met.append(labels)
        else:
            op.freeze(labels, "has size 1")
    if not any(labels is not None for labels in met):
        return None
    first = met[0]
    for labels in met[1:]:
        first = op.tie(first, labels)
    for i, own in constants:
        op.site(i, own, first)
    return first


# -- layers with weights -------------------------------------------------------------------


@rule("Conv")
def conv(op: Op) -> None:
    """Fresh output channels; the input channels slice the weight's axis 1."""
    outputs = op.out_shape()[1]
    groups, per_group = int(op.attribute("group", 1)), op.shape(1)[1]
    index = np.arange(outputs, dtype=np.int64)
    spatial = (1,) * (len(op.shape(1)) - 2)
    first = index[:, None] // (outputs // groups) * per_group
    _convolution(
        op,
        groups=groups,
        inside=(1, per_group),
        outside=(0, outputs // groups),
        channel_of=(first + np.arange(per_group)).reshape(outputs, per_group, *spatial),
        output_of=index.reshape(outputs, 1, *spatial),
    )


@rule("ConvTranspose")
def conv_transpose(op: Op) -> None:
    """Like Conv, with the weight's first two axes in the other order."""
    inputs, per_group = op.shape(1)[:2]
    groups = int(op.attribute("group", 1))
    index = np.arange(inputs, dtype=np.int64)
    spatial = (1,) * (len(op.shape(1)) - 2)
    first = index[:, None] // (inputs // groups) * per_group
    _convolution(
        op,
        groups=groups,
        inside=(0, inputs // groups),
        outside=(1, per_group),
        channel_of=index.reshape(inputs, 1, *spatial),
        output_of=(first + np.arange(per_group)).reshape(inputs, per_group, *spatial),
    )


def _convolution(
    op: Op,
    *,
    groups: int,
    inside: tuple[int, int],
    outside: tuple[int, int],
    channel_of: I64,
    output_of: I64,
) -> None:
    """Channels are (convolution group, place in the group) on both sides of the operator.

    ``inside`` and ``outside`` name the weight axis that holds the input and the output
    channels, and their number per group. The full channel axis lies on weight axis 0.
    """
    op.give(0, op.take(0, 0))
    if not op.is_constant(1):
        return op.close("its weights are computed in the graph")
    labels = op.sink(0, 1) if inside[1] > 1 else op.take(0, 1)
    group, within = op.factor(labels, groups, inside[1])
    if groups == 1:
        group = None
    fresh = op.fresh(outside[1]) if outside[1] > 1 else None
    merged = op.merge([group, fresh], (groups, outside[1]))
    if fresh is None:
        op.give(1, merged)
    else:
        op.origin(1, merged)
    for axis, own, whole in ((inside[0], within, labels), (outside[0], fresh, merged)):
        op.site(1, axis, whole if axis == 0 else own)
    op.site(2, 0, merged)
    if group is not None:
        op.sizes({0: group}, "group")
    op.weight(
        1,
        data_input=0,
        data_axis=1,
        channel_of=channel_of,
        output_of=output_of,
        output_axis=1,
    )
    return None


@rule("Gemm")
def gemm(op: Op) -> None:
    """``A B + C`` of matrices, either of them stored transposed."""
    a, b = int(op.attribute("transA", 0)), int(op.attribute("transB", 0))
    if not op.is_constant(1) or op.is_constant(0):
        _contract(op, (0, 1 - a), (1, b))
        op.give(0, op.take(0, a))
        op.give(1, op.take(1, 1 - b))
    else:
        op.give(0, op.take(0, a))
        op.site(1, b, op.sink(0, 1 - a))
        op.site(1, 1 - b, op.origin(1))
        _record_matrix(op, weight=1, weight_axis=b, data=0, data_axis=1 - a, output_axis=1)
    out = op.out_shape()
    for axis in range(2):
        labels = op.given(axis)
        own = axis - (2 - len(op.shape(2))) if op.has(2) else -1
        if own < 0:
            continue
        addend = op.take(2, own)
        if op.shape(2)[own] != out[axis]:
            op.freeze(addend, "is spread over another axis by broadcasting")
        elif op.is_constant(2):
            op.site(2, own, labels)
        else:
            op.tie(labels, addend)


def _contract(op: Op, left: tuple[int, int], right: tuple[int, int]) -> None:
    """Sum over an axis of two operands; a constant one is sliced along."""
    if op.is_constant(left[0]) or op.is_constant(right[0]):
        constant, other = (left, right) if op.is_constant(left[0]) else (right, left)
        op.site(*constant, op.sink(*other))
    else:
        op.tie(op.sink(*left), op.sink(*right))


def _record_matrix(
    op: Op, *, weight: int, weight_axis: int, data: int, data_axis: int, output_axis: int
) -> None:
    shape = op.shape(weight)
    inside = np.arange(shape[weight_axis], dtype=np.int64)
    outside = np.arange(shape[1 - weight_axis], dtype=np.int64)
    view = (-1, 1) if weight_axis == 0 else (1, -1)
    op.weight(
        weight,
        data_input=data,
        data_axis=data_axis,
        channel_of=inside.reshape(view),
        output_of=outside.reshape(view[::-1]),
        output_axis=output_axis,
    )


@rule("MatMul")
def matmul(op: Op) -> None:
    """Stacks of matrices; a constant matrix is a layer's weight and begins labels."""
    out, ranks = op.out_shape(), [len(op.shape(i)) for i in (0, 1)]
    if min(ranks) < 2:
        return
    _contract(op, (0, ranks[0] - 1), (1, ranks[1] - 2))
    rows, columns = len(out) - 2, len(out) - 1
    for axis in range(rows):
        op.give(axis, _matmul_batch(op, axis, out))
    for i, axis, own in ((0, rows, ranks[0] - 2), (1, columns, ranks[1] - 1)):
        if op.is_constant(i) and ranks[i] == 2 and not op.is_constant(1 - i):
            op.site(i, own, op.origin(axis))
            inner, data_axis = (1, ranks[1] - 2) if i == 0 else (0, ranks[0] - 1)
            _record_matrix(
                op,
                weight=i,
                weight_axis=inner,
                data=1 - i,
                data_axis=data_axis,
                output_axis=axis,
            )
        else:
            op.give(axis, op.take(i, own))


def _matmul_batch(op: Op, axis: int, out: tuple[int, ...]) -> I64 | None:
    return join(op, axis, out, [0, 1])


# -- normalisation and reductions ----------------------------------------------------------


@rule("BatchNormalization")
def batch_normalization(op: Op) -> None:
    """Each channel has its own four parameters."""
    labels = op.take(0, 1)
    if len(op.node.outputs) > 1 and not op.node.outputs[1].is_empty():
        op.freeze(labels, "is normalised in training mode")
    for i in range(1, 5):
        if op.is_constant(i):
            op.site(i, 0, labels)
        else:
            op.freeze(labels, "is normalised with computed parameters")
    for axis in range(len(op.shape(0))):
        op.give(axis, op.take(0, axis) if axis != 1 else labels)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op) -> None:
    """Normalises over one axis (before opset 13 over all from ``axis`` on)."""
    rank = len(op.shape(0))
    axis = int(op.attribute("axis", -1 if op.opset >= 13 else 1)) % rank
    over = {axis} if op.opset >= 13 else set(range(axis, rank))
    for k in set(range(rank)) - over:
        op.give(k, op.take(0, k))


SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@rule(*SUMS, "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum")
@rule("ReduceLogSumExp")
def reduce(op: Op) -> None:
    """Reduced axes vanish; sums read a removed channel as zero, other reductions freeze it."""
    rank = len(op.shape(0))
    axes = op.ints(1, "axes")
    if axes is None and op.has(1):
        return
    if not axes:
        axes = [] if op.attribute("noop_with_empty_axes", 0) else list(range(rank))
    over = {k % rank for k in axes}
    left = [k for k in range(rank) if k not in over]
    for place, k in enumerate(left):
        op.give(k if op.attribute("keepdims", 1) else place, op.take(0, k))
    if op.type in SUMS:
        for k in over:
            op.sink(0, k)


# -- spatial -------------------------------------------------------------------------------


@rule("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool")
@rule("GlobalLpPool")
def pool(op: Op) -> None:
    """Works on each map alone; the positions that MaxPool can return count across maps."""
    if len(op.node.outputs) > 1 and not op.node.outputs[1].is_empty():
        return
    for axis in (0, 1):
        op.give(axis, op.take(0, axis))


@rule("Resize", "Upsample")
def resize(op: Op) -> None:
    """Axes that keep their size pass; a ``sizes`` operand is rewritten."""
    if op.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        return
    shape, out = op.shape(0), op.out_shape()
    axes = [int(k) % len(shape) for k in op.attribute("axes", range(len(shape)))]
    counted: dict[int, I64] = {}
    for axis, labels in op.labelled(0).items():
        if shape[axis] != out[axis]:
            continue
        op.give(axis, op.take(0, axis))
        if op.has(3) and axis in axes:
            counted[axes.index(axis)] = labels
    op.sizes(counted, 3)


# -- layout: operators that run themselves on labels ---------------------------------------


@rule("Transpose")
def transpose(op: Op) -> None:
    """Axes change places."""
    rank = len(op.shape(0))
    for axis, source in enumerate(op.attribute("perm", range(rank)[::-1])):
        op.give(axis, op.take(0, int(source)))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Op) -> None:
    """Axes split into factors and factors merge into axes, in row-major order.

    Input and output axes are cut into the smallest runs with equal products; inside a run the
    sizes of both sides nest (their common factors) or the run's labels are frozen.
    """
    if not op.labelled(0):
        return
    runs = _reshape_runs(op.shape(0), op.out_shape())
    if runs != _reshape_runs(*op.second_shapes()) and not _same_factors(op):
        return
    counted: dict[int, I64] = {}
    for inner, outer, factors in runs:
        labelled = [k for k in inner if k in op.labelled(0)]
        if factors is None or not labelled:
            continue
        pieces: list[I64 | None] = []
        for axis, dims in _take_factors(op.shape(0), inner, factors):
            pieces += op.factor(op.take(0, axis), *dims)
        for axis, dims in _take_factors(op.out_shape(), outer, factors):
            own = [pieces.pop(0) for _ in dims]
            merged = op.merge(own, dims)
            op.give(axis, merged)
            if merged is not None:
                counted[axis] = merged
    if op.type == "Reshape":
        op.sizes(counted, 1)


Run = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]


def _reshape_runs(inner: tuple[int, ...], outer: tuple[int, ...]) -> list[Run]:
    """Cut axes into runs ``(input axes, output axes, common factors or None)``."""
    runs: list[Run] = []
    i = o = 0
    while i < len(inner) or o < len(outer):
        start = i, o
        left = right = 1
        while True:
            if left <= right and i < len(inner) and (left < right or (i, o) == start):
                left, i = left * inner[i], i + 1
            elif o < len(outer):
                right, o = right * outer[o], o + 1
            elif i < len(inner):
                left, i = left * inner[i], i + 1
            if left == right and (i, o) != start:
                break
            if i == len(inner) and o == len(outer):
                break
        a, b = tuple(range(start[0], i)), tuple(range(start[1], o))
        runs.append((a, b, _common_factors([inner[k] for k in a], [outer[k] for k in b])))
    return runs


def _common_factors(inner: list[int], outer: list[int]) -> tuple[int, ...] | None:
    """Return sizes of which both lists are products of neighbours, or None if they clash."""
    cuts = np.union1d(np.cumprod([1, *inner]), np.cumprod([1, *outer]))
    if cuts[0] == 0 or (cuts[1:] % cuts[:-1]).any() or np.prod(inner) != np.prod(outer):
        return None
    return tuple(int(f) for f in cuts[1:] // cuts[:-1])


def _take_factors(
    shape: tuple[int, ...], axes: tuple[int, ...], factors: tuple[int, ...]
) -> list[tuple[int, tuple[int, ...]]]:
    """Deal the factors of a run out to its axes, in order."""
    dealt, rest = [], list(factors)
    for axis in axes:
        size, dims = 1, []
        while size < shape[axis]:
            dims.append(rest.pop(0))
            size *= dims[-1]
        dealt.append((axis, tuple(dims)))
    return dealt


def _same_factors(op: Op) -> bool:
    """Whether both observations split the labelled axes alike (the others may be dynamic)."""
    inner, outer = op.second_shapes()
    first, second = _reshape_runs(op.shape(0), op.out_shape()), _reshape_runs(inner, outer)
    labelled = set(op.labelled(0))
    pick = [[r for r in runs if labelled & set(r[0])] for runs in (first, second)]
    if [(r[0], r[1]) for r in pick[0]] != [(r[0], r[1]) for r in pick[1]]:
        return False
    for (axes, outs, a), (_, _, b) in zip(*pick, strict=True):
        if a is None or b is None or len(a) != len(b):
            return False
        one = _take_factors(op.shape(0), axes, a), _take_factors(op.out_shape(), outs, a)
        two = _take_factors(inner, axes, b), _take_factors(outer, outs, b)
        if [[len(d) for _, d in side] for side in one] != [[len(d) for _, d in s] for s in two]:
            return False
    return True


@rule("Concat")
def concat(op: Op) -> None:
    """Along its axis labels line up; across the other axes they are tied."""
    out = op.out_shape()
    axis = int(op.attribute("axis")) % len(out)
    for k in range(len(out)):
        if k != axis:
            op.give(k, join(op, k, out, list(op.inputs)))
    if not any(axis in op.labelled(i) for i in op.inputs):
        return
    parts = [
        op.fixed(op.shape(i)[axis], MEETS_FIXED) if part is None else part
        for i in op.inputs
        for part in [op.take(i, axis)]
    ]
    op.give(axis, np.concatenate(parts))


@rule("Split")
def split(op: Op) -> None:
    """Every output takes its part of the labels; the split sizes are rewritten."""
    axis = int(op.attribute("axis", 0)) % len(op.shape(0))
    for k in range(len(op.shape(0))):
        if k != axis:
            for o in range(len(op.node.outputs)):
                op.give(k, op.take(0, k), o)
    labels = op.labelled(0).get(axis)
    if labels is None or (op.has(1) and not op.is_constant(1)):
        return
    sizes = [op.out_shape(o)[axis] for o in range(len(op.node.outputs))]
    op.take(0, axis)
    parts = np.split(labels, np.cumsum(sizes)[:-1])
    for o, part in enumerate(parts):
        op.give(axis, part, o)
    op.known_sizes(sizes, dict(enumerate(parts)), "split" if op.opset < 13 else 1)


@rule("Slice")
def slice_(op: Op) -> None:
    """A run of labels is cut out of an axis; steps only on axes without labels."""
    rank, out = len(op.shape(0)), op.out_shape()
    starts, ends = op.ints(1, "starts"), op.ints(2, "ends")
    axes = op.ints(3, "axes") or (list(range(len(starts))) if starts else None)
    steps = op.ints(4, "steps") or [1] * rank
    if starts is None or ends is None or axes is None or not op.all_constant(3, 4):
        return
    lows, highs = list(starts), list(ends)
    first: dict[int, I64] = {}
    last: dict[int, I64] = {}
    for k in range(rank):
        where = [p for p, axis in enumerate(axes) if axis % rank == k]
        labels = op.labelled(0).get(k)
        if not where:
            op.give(k, op.take(0, k))
            continue
        if labels is None or steps[where[0]] != 1:
            continue
        p, size = where[0], op.shape(0)[k]
        low, high, _ = slice(starts[p], ends[p]).indices(size)
        op.take(0, k)
        assert high - low == out[k]
        op.give(k, labels if (low, high) == (0, size) else labels[low:high])
        lows[p], highs[p] = low, high
        first[p], last[p] = labels[:low], labels[:high]
    op.known_sizes(lows, first, 1 if op.opset >= 10 else "starts")
    op.known_sizes(highs, last, 2 if op.opset >= 10 else "ends")


@rule("Pad")
def pad(op: Op) -> None:
    """Constant channels around an axis get labels of their own."""
    rank = len(op.shape(0))
    pads = op.ints(1, "pads")
    if pads is None or not op.all_constant(3):
        return
    axes = [k % rank for k in (op.ints(3, "") or range(rank))]
    constant = op.attribute("mode", "constant") == "constant"
    counted: dict[int, I64] = {}
    for k in range(rank):
        labels = op.labelled(0).get(k)
        where = axes.index(k) if k in axes else None
        before, after = (pads[where], pads[where + len(axes)]) if where is not None else (0, 0)
        if labels is None or ((before or after) and not constant) or min(before, after) < 0:
            continue
        op.take(0, k)
        front, back = op.fresh(before), op.fresh(after)
        op.give(k, np.concatenate([front, labels, back]) if before or after else labels)
        if where is not None and before:
            counted[where] = front
        if where is not None and after:
            counted[where + len(axes)] = back
    op.sizes(counted, "pads" if "pads" in op.node.attrs else 1)


@rule("Gather")
def gather(op: Op) -> None:
    """Constant indices pick labels; a single index keeps its channel for good."""
    axis = int(op.attribute("axis", 0)) % len(op.shape(0))
    rank = len(op.shape(1))
    for k in range(len(op.shape(0))):
        if k != axis:
            op.give(k if k < axis else k + rank - 1, op.take(0, k))
    labels, indices = op.labelled(0).get(axis), op.value(1)
    if labels is None or indices is None or rank > 1:
        return
    op.take(0, axis)
    picked = labels[indices % len(labels)]
    if rank == 0:
        op.freeze(picked.reshape(1), "is picked by its number")
    else:
        op.give(axis, picked)
    op.renumber(1, labels)


@rule("Expand")
def expand(op: Op) -> None:
    """Axes of size 1 are repeated; the others pass, and the shape operand is rewritten."""
    out = op.out_shape()
    counted: dict[int, I64] = {}
    for k in range(len(out)):
        labels = join(op, k, out, [0])
        op.give(k, labels)
        if labels is not None:
            counted[k] = labels
    shape = op.shape(1)[0]
    op.sizes({k - (len(out) - shape): v for k, v in counted.items() if k >= len(out) - shape}, 1)


@rule("Tile")
def tile(op: Op) -> None:
    """Labels repeat as the values do."""
    repeats = op.ints(1, "")
    if repeats is None:
        return
    for k, times in enumerate(repeats):
        labels = op.take(0, k)
        op.give(k, labels if labels is None or times == 1 else np.tile(labels, times))


@rule("Shape")
def shape_of(op: Op) -> None:
    """Its readers go on seeing the original sizes."""
    axes = op.labelled(0)
    for axis in axes:
        op.take(0, axis)
    op.keep_original_shape(axes)
