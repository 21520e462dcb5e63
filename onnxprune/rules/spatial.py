"""Operators on maps: pooling and resizing."""

from __future__ import annotations

from onnxprune.labels import I64
from onnxprune.op import Op
from onnxprune.rules.registry import rule


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


@rule("DepthToSpace", "SpaceToDepth")
def depth_space(op: Op) -> None:
    """Blocks of positions become channels, or the other way round: whole blocks leave."""
    op.give(0, op.take(0, 0))
    block = int(op.attribute("blocksize")) ** 2
    few = min(op.shape(0)[1], op.out_shape()[1])
    column_major = op.type == "DepthToSpace" and op.attribute("mode", "DCR") == "CRD"
    dims, place = ((few, block), 0) if column_major else ((block, few), 1)
    labels = op.take(0, 1)
    if labels is None:
        return
    if op.type == "SpaceToDepth":
        op.give(1, op.merge([None, labels], dims))
        return
    kept = op.fresh(few) if few > 1 else None
    spread = [None, kept] if place else [kept, None]
    merged = op.merge(spread, dims)
    op.tie(labels, merged)
    op.give(1, kept)
