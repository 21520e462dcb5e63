"""Operators that move values, or combine those of one channel at several positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import I64
from onnxprune.clean.channels import Channels, channels, join
from onnxprune.clean.transfers.registry import transfer

if TYPE_CHECKING:
    from onnxprune.clean.facts import Facts


def _ints(r: Facts, node: gs.Node, i: int, attribute: str) -> list[int] | None:
    """Return integers that older opsets hold in an attribute and newer ones in input ``i``."""
    if attribute in node.attrs:
        return [int(v) for v in np.atleast_1d(node.attrs[attribute])]
    value = r.values.get(node.inputs[i].name) if len(node.inputs) > i else None
    return None if value is None else [int(v) for v in np.atleast_1d(value)]


def _text(node: gs.Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _largest(r: Facts, found: Channels, axis: int | None = None) -> Channels:
    """The maximum over positions: ``max(s x + b) = s max(x) + b`` for positive ``s``."""
    sign = np.sign(found.scale).astype(np.int64)
    root = np.where(found.constant, found.root, r.roots.of([found.root, sign], []))
    scale = np.where(found.constant, 0.0, np.abs(found.scale))
    return channels(found.axis if axis is None else axis, root, scale, found.offset)


@transfer("MaxPool", "GlobalMaxPool")
def _max_pool(r: Facts, node: gs.Node) -> None:
    found = r.data(node)
    if found is not None and found.axis == 1:
        r.put(node.outputs[0], _largest(r, found))


@transfer("AveragePool", "GlobalAveragePool")
def _average_pool(r: Facts, node: gs.Node) -> None:
    found = r.data(node)
    if found is None or found.axis != 1:
        return
    counts_padding = node.attrs.get("count_include_pad", 0) or node.attrs.get("ceil_mode", 0)
    if counts_padding:
        found = found.in_padding(r.roots)
    r.put(node.outputs[0], r.renamed(found))


@transfer("Resize", "Upsample")
def _resize(r: Facts, node: gs.Node) -> None:
    """Interpolation: a linear map whose weights sum to one."""
    found = r.data(node)
    mode = _text(node, "coordinate_transformation_mode", "half_pixel")
    if found is not None and mode != "tf_crop_and_resize":
        r.put(node.outputs[0], r.renamed(found))


@transfer("ReduceMean", "ReduceMax", "ReduceSum")
def _reduce(r: Facts, node: gs.Node) -> None:
    found = r.data(node)
    axes = _ints(r, node, 1, "axes")
    if found is None or not axes:
        return
    rank = len(r.shape(node.inputs[0].name))
    over = {k % rank for k in axes}
    if found.axis in over:
        return
    axis = found.axis
    if not node.attrs.get("keepdims", 1):
        axis -= sum(k < axis for k in over)
    if node.op == "ReduceMax":
        r.put(node.outputs[0], _largest(r, found, axis))
        return
    found = found.in_padding(r.roots) if node.op == "ReduceSum" else found
    r.put(node.outputs[0], r.renamed(found, axis))


@transfer("Transpose")
def _transpose(r: Facts, node: gs.Node) -> None:
    found = r.data(node)
    if found is not None:
        rank = len(r.shape(node.inputs[0].name))
        order = [int(k) for k in node.attrs.get("perm", range(rank)[::-1])]
        r.put(node.outputs[0], r.renamed(found, order.index(found.axis)))


@transfer("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(r: Facts, node: gs.Node) -> None:
    """The channels stay an axis, or merge with others of fixed size into one."""
    found, source, target = r.data(node), node.inputs[0].name, node.outputs[0].name
    if found is None:
        return
    views = [(shapes[source], shapes[target]) for shapes in (r.shapes.first, r.shapes.second)]
    merged = [_merged(a, b, found.axis) for a, b in views]
    if merged[0] is None or merged[0] != merged[1]:
        return
    axis, before, after = merged[0]
    if before == after == 1:
        r.put(node.outputs[0], r.renamed(found, axis))
        return
    index = np.broadcast_to(
        np.arange(len(found))[None, :, None], (before, len(found), after)
    ).reshape(-1)
    place = np.arange(before * len(found) * after)
    place = place // (len(found) * after) * after + place % after
    wide = found.take(index, axis)
    root = np.where(wide.constant, wide.root, r.roots.of([wide.root, place], []))
    r.put(node.outputs[0], channels(axis, root, wide.scale, wide.offset))


def _merged(
    inner: tuple[int, ...], outer: tuple[int, ...], axis: int
) -> tuple[int, int, int] | None:
    """Return where an axis goes to, and how much of other axes runs outside and inside it."""
    for place, size in enumerate(outer):
        first = next(
            (a for a in range(axis + 1) if np.prod(inner[:a]) == np.prod(outer[:place])), None
        )
        last = next(
            (
                b
                for b in range(axis + 1, len(inner) + 1)
                if np.prod(inner[b:]) == np.prod(outer[place + 1 :])
            ),
            None,
        )
        if first is not None and last is not None and np.prod(inner[first:last]) == size:
            return (
                place,
                int(np.prod(inner[first:axis])),
                int(np.prod(inner[axis + 1 : last])),
            )
    return None


@transfer("Concat")
def _concat(r: Facts, node: gs.Node) -> None:
    rank = len(r.shape(node.outputs[0].name))
    axis = int(node.attrs["axis"]) % rank
    names = [t.name for t in node.inputs]
    if not all(r.shapes.has(n) or n in r.values for n in names):
        return
    known = [c for n in names if (c := r.known(n)) is not None]
    if any(c.axis == axis for c in known):
        r.put(node.outputs[0], join([r.of(n, axis) for n in names], axis))
    elif known:
        parts = [r.of(n, known[0].axis) for n in names]
        r.put(node.outputs[0], _side_by_side(r, parts))


def _side_by_side(r: Facts, parts: list[Channels]) -> Channels:
    """Each channel goes on in the next part."""
    root = r.roots.of([p.root for p in parts], [v for p in parts for v in (p.scale, p.offset)])
    constant = np.logical_and.reduce([p.constant & (p.offset == parts[0].offset) for p in parts])
    scale, offset = np.where(constant, 0.0, 1.0), np.where(constant, parts[0].offset, 0.0)
    return channels(parts[0].axis, root, scale, offset)


@transfer("Split")
def _split(r: Facts, node: gs.Node) -> None:
    found = r.data(node)
    if found is None:
        return
    rank = len(r.shape(node.inputs[0].name))
    start, axis = 0, int(node.attrs.get("axis", 0)) % rank
    for output in node.outputs:
        if axis != found.axis:
            r.put(output, r.renamed(found))
        elif output.is_empty():
            return
        else:
            size = r.shape(output.name)[axis]
            r.put(output, found.take(np.arange(start, start + size)))
            start += size


@transfer("Slice")
def _slice(r: Facts, node: gs.Node) -> None:
    found = r.data(node)
    starts, ends = _ints(r, node, 1, "starts"), _ints(r, node, 2, "ends")
    if found is None:
        return
    rank = len(r.shape(node.inputs[0].name))
    given = _ints(r, node, 3, "axes")
    axes = None if starts is None else given or list(range(len(starts)))
    if axes is None or starts is None or ends is None:
        return
    steps = _ints(r, node, 4, "steps") or [1] * len(axes)
    index: I64 = np.arange(len(found))
    moved = False
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=False):
        if axis % rank == found.axis:
            stop = None if step < 0 and end < -len(found) else end
            index = index[start:stop:step]
        else:
            moved = True
    taken = found.take(index)
    r.put(node.outputs[0], r.renamed(taken) if moved else taken)


@transfer("Gather")
def _gather(r: Facts, node: gs.Node) -> None:
    """Constant indices into the channels."""
    found, index = r.data(node), r.values.get(node.inputs[1].name)
    if found is None or index is None or index.ndim != 1:
        return
    if int(node.attrs.get("axis", 0)) % len(r.shape(node.inputs[0].name)) == found.axis:
        r.put(node.outputs[0], found.take(index))


@transfer("Pad")
def _pad(r: Facts, node: gs.Node) -> None:
    found, pads = r.data(node), _ints(r, node, 1, "pads")
    value = r.values.get(node.inputs[2].name) if len(node.inputs) > 2 else None
    empty = len(node.inputs) < 3 or node.inputs[2].is_empty()
    fill = node.attrs.get("value", 0.0) if value is None else value
    if found is None or pads is None or len(node.inputs) > 3 or not (empty or value is not None):
        return
    rank = len(r.shape(node.inputs[0].name))
    if len(pads) != 2 * rank or np.any(np.asarray(fill) != 0):
        return
    before, after = pads[found.axis], pads[found.axis + rank]
    around = any(p for k, p in enumerate(pads) if k % rank != found.axis)
    if _text(node, "mode", "constant") != "constant":
        if not (before or after):
            r.put(node.outputs[0], r.renamed(found))
        return
    if around:
        found = r.renamed(found.in_padding(r.roots))
    if before < 0 or after < 0:
        return
    zeros = [
        channels(found.axis, r.roots.fresh(n), np.zeros(1), np.zeros(1)) for n in (before, after)
    ]
    r.put(node.outputs[0], join([zeros[0], found, zeros[1]], found.axis))
