"""Operators on maps: pooling and resizing."""

from __future__ import annotations

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule


@rule("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool")
@rule("GlobalLpPool")
def pool(op: Op) -> None:
    """Works on each map alone; the positions that MaxPool can return count across maps."""
    if len(op.node.outputs) > 1 and not op.node.outputs[1].is_empty():
        return
    op.pass_on((0, 1))


@rule("GridSample", "com.microsoft::GridSample", "RoiAlign", "MaxRoiPool")
def sample(op: Op) -> None:
    """Every map is sampled at the same positions, which another input names."""
    op.pass_on([1])


@rule("CenterCropPad")
def crop(op: Op) -> None:
    """Axes that it does not name pass."""
    op.pass_all_but(*map(int, op.attribute("axes", range(len(op.shape(0))))))


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
    op.give(1, _whole(op, labels, dims, place))


def _whole(op: Op, labels: I64, dims: tuple[int, int], place: int) -> I64 | None:
    """Return the factor of an axis whose indices leave with all that share them."""
    kept = op.fresh(dims[place]) if dims[place] > 1 else None
    op.tie(labels, op.merge([None, kept] if place else [kept, None], dims))
    return kept


@rule("Col2Im")
def columns_to_image(op: Op) -> None:
    """Columns ``[N, channels x kernel, positions]`` are added up to maps: whole channels leave."""
    op.give(0, op.take(0, 0))
    channels, labels = op.out_shape()[1], op.take(0, 1)
    if labels is not None:
        op.give(1, _whole(op, labels, (channels, len(labels) // channels), 0))


@rule("DFT")
def fourier(op: Op) -> None:
    """Sums along one axis with numbers of their own; the last holds real and imaginary parts."""
    axes = op.ints(2, "axis") or [1 if op.opset < 20 else -2]
    if op.all_constant(1, 2):
        op.pass_all_but(axes[0], -1)
