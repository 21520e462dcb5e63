"""Operators that pick, join or repeat parts of axes, and run themselves on labels."""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import I64
from onnxprune.structure.op import MEETS_FIXED, WHERE_SINCE, Op
from onnxprune.structure.rules.elementwise import join
from onnxprune.structure.rules.registry import rule


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
    """Constant indices pick labels; computed ones look rows up in a table.

    A single constant index keeps its channel for good. Columns of a constant table that is
    looked up (an embedding) begin labels.
    """
    axis = int(op.attribute("axis", 0)) % len(op.shape(0))
    rank = len(op.shape(1))
    for k in range(len(op.shape(0))):
        place = k if k < axis else k + rank - 1
        if k == axis:
            continue
        if op.is_constant(0):
            op.site(0, k, op.origin(place))
        else:
            op.give(place, op.take(0, k))
    for k in range(rank):
        op.give(axis + k, op.take(1, k))
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


@rule("GatherND")
def gather_nd(op: Op) -> None:
    """Axes behind the indexed ones pass; those of a constant table begin labels."""
    depth, rank = op.shape(1)[-1] + int(op.attribute("batch_dims", 0)), len(op.shape(0))
    for k in range(depth, rank):
        place = k - rank + len(op.out_shape())
        if op.is_constant(0):
            op.site(0, k, op.origin(place))
        else:
            op.give(place, op.take(0, k))


@rule("ScatterND")
def scatter_nd(op: Op) -> None:
    """Axes behind the indexed ones are tied between data and updates."""
    depth, rank, out = op.shape(1)[-1], len(op.shape(0)), op.out_shape()
    for k in range(depth, rank):
        shift = len(op.shape(2)) - rank
        met = [op.take(0, k), op.take(2, k + shift)]
        constants = [(i, own) for i, own in ((0, k), (2, k + shift)) if op.is_constant(i)]
        free = [labels for i, labels in ((0, met[0]), (2, met[1])) if not op.is_constant(i)]
        labels = free[0] if free else None
        for other in free[1:]:
            labels = op.tie(labels, other)
        for i, own in constants:
            op.site(i, own, labels)
        if out[k] > 1:
            op.give(k, labels)


@rule("GatherElements")
def gather_elements(op: Op) -> None:
    """Each value is looked up along one axis; across the others data and indices line up."""
    rank, out = len(op.shape(0)), op.out_shape()
    axis = int(op.attribute("axis", 0)) % rank
    op.give(axis, op.take(1, axis))
    for k in set(range(rank)) - {axis}:
        if op.shape(0)[k] == out[k]:
            op.give(k, join(op, k, out, [0, 1]))


@rule("ScatterElements", "Scatter")
def scatter_elements(op: Op) -> None:
    """Each value is written, or added, along one axis; across the others all operands line up.

    Where the updates are fewer than the data, they belong to the first indices: those freeze.
    """
    rank, out = len(op.shape(0)), op.out_shape()
    for k in set(range(rank)) - {int(op.attribute("axis", 0)) % rank}:
        if op.shape(1)[k] == op.shape(2)[k] == out[k]:
            op.give(k, join(op, k, out, [0, 1, 2]))


@rule("Compress")
def compress(op: Op) -> None:
    """Indices along one axis are dropped; the other axes pass."""
    if "axis" in op.node.attrs:
        op.pass_all_but(int(op.attribute("axis")))


@rule("OneHot")
def one_hot(op: Op) -> None:
    """A new axis tells the values apart; the others pass."""
    axis = int(op.attribute("axis", -1)) % len(op.out_shape())
    for k in range(len(op.shape(0))):
        op.give(k + (k >= axis), op.take(0, k))


@rule("ReverseSequence", "Trilu", "com.microsoft::Trilu")
def along_two_axes(op: Op) -> None:
    """Values are moved, or set to zero, by their places along two axes; the others pass."""
    if op.type == "ReverseSequence":
        op.pass_all_but(int(op.attribute("batch_axis", 1)), int(op.attribute("time_axis", 0)))
    else:
        op.pass_all_but(-2, -1)


@rule("Expand")
def expand(op: Op) -> None:
    """Axes of size 1 are repeated; the others pass, and the shape operand is rewritten.

    A repeated axis, and a constant (a class token that is repeated for every sample), can shrink
    with what it meets.
    """
    out = op.out_shape()
    counted: dict[int, I64] = {}
    behind = len(out) - len(op.shape(0))
    for k in range(len(out)):
        labels = join(op, k, out, [0])
        repeated = k < behind or op.shape(0)[k - behind] != out[k]
        if repeated and out[k] > 1 and not op.dynamic(0, k):
            labels = op.fresh(out[k])
        op.give(k, labels)
        if labels is not None:
            counted[k] = labels
    shape = op.shape(1)[0]
    op.sizes({k - (len(out) - shape): v for k, v in counted.items() if k >= len(out) - shape}, 1)


@rule("Tile")
def tile(op: Op) -> None:
    """Labels repeat as the values do; an axis of size 1 can be repeated less often.

    How often is observed, so it may be computed; a constant can shrink with what it meets.
    """
    counted: dict[int, I64] = {}
    for k, (size, length) in enumerate(zip(op.shape(0), op.out_shape(), strict=True)):
        times = length // max(size, 1)
        labels = join(op, k, op.shape(0), [0]) if op.is_parameter(0) else op.take(0, k)
        if op.shape(0)[k] == 1 and times > 1 and not op.dynamic(0, k):
            labels = counted[k] = op.fresh(times)
        elif labels is not None and times > 1:
            labels = np.tile(labels, times)
        op.give(k, labels)
    op.sizes(counted, 1)


@rule("Shape")
def shape_of(op: Op) -> None:
    """Its readers go on seeing the original sizes."""
    axes = op.labelled(0)
    if op.opset < WHERE_SINCE:
        return
    for axis in axes:
        op.take(0, axis)
    op.keep_original_shape(axes)


@rule("ConstantOfShape")
def constant_of_shape(op: Op) -> None:
    """One value everywhere: every axis can shrink, by its entry in the shape."""
    counted: dict[int, I64] = {}
    for k, size in enumerate(op.out_shape()):
        if size > 1 and not op.dynamic(0, k):
            counted[k] = op.fresh(size)
            op.give(k, counted[k])
    op.sizes(counted, 0)
