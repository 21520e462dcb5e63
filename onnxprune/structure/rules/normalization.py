"""Normalisations and reductions: what mixes values along an axis."""

from __future__ import annotations

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule


@rule("BatchNormalization")
def batch_normalization(op: Op) -> None:
    """Each channel has its own four parameters, and in training mode statistics of its own."""
    labels = op.take(0, 1)
    for i in range(1, 5):
        op.site(i, 0, labels)
    op.pass_on(range(len(op.shape(0))))
    for o in range(1, len(op.node.outputs)):
        op.give(0, labels, o)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op) -> None:
    """Normalises over one axis (before opset 13 over all from ``axis`` on)."""
    rank = len(op.shape(0))
    axis = int(op.attribute("axis", -1 if op.opset >= 13 else 1)) % rank
    op.pass_all_but(*([axis] if op.opset >= 13 else range(axis, rank)))


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(op: Op) -> None:
    """Normalises over the axes from ``axis`` on, each index with its own scale and bias."""
    rank = len(op.shape(0))
    first = int(op.attribute("axis", -1)) % rank
    for k in range(rank):
        labels = op.take(0, k) if k < first else op.normalised(0, k)
        for o in range(len(op.node.outputs)):
            if o == 0 or k < first:
                op.give(k, labels, o)
        parameters(op, (1, 2), k - rank, labels)


def parameters(op: Op, inputs: tuple[int, ...], axis: int, labels: I64 | None) -> None:
    """Slice or tie parameters that are broadcast against ``axis`` (from the last, negative)."""
    for i in inputs:
        own = axis + len(op.shape(i)) if op.has(i) else -1
        if own < 0 or op.shape(i)[own] == 1:
            continue
        if op.is_constant(i):
            op.site(i, own, labels)
        else:
            op.tie(labels, op.take(i, own))


@rule("InstanceNormalization")
def instance_normalization(op: Op) -> None:
    """Each map is normalised alone, with a scale and a bias for each channel."""
    op.give(0, op.take(0, 0))
    labels = op.take(0, 1)
    op.give(1, labels)
    for i in (1, 2):
        parameters(op, (i,), -1, labels)


@rule("GroupNormalization")
def group_normalization(op: Op) -> None:
    """Groups of channels are normalised together: whole groups leave exactly."""
    channels, groups = op.shape(0)[1], int(op.attribute("num_groups"))
    op.give(0, op.take(0, 0))
    labels = op.take(0, 1)
    group, within = op.factor(labels, groups, channels // groups)
    op.normalise(within)
    op.give(1, labels)
    for i in (1, 2):
        parameters(op, (i,), -1, labels if op.shape(i)[0] == channels else group)
    if group is not None:
        op.sizes({0: group}, "num_groups")


@rule("LpNormalization")
def lp_normalization(op: Op) -> None:
    """Normalises over one axis."""
    rank = len(op.shape(0))
    axis = int(op.attribute("axis", -1)) % rank
    for k in range(rank):
        op.give(k, op.normalised(0, k) if k == axis else op.take(0, k))


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: Op) -> None:
    """Normalises over the axes it names."""
    rank = len(op.shape(0))
    axes = {int(k) % rank for k in op.attribute("axes", (0, 2, 3))}
    for k in range(rank):
        op.give(k, op.normalised(0, k) if k in axes else op.take(0, k))


@rule("LRN", "CumSum", "CumProd", "TopK", "ArgMax", "ArgMin")
def along_one_axis(op: Op) -> None:
    """Values along one axis depend on each other; the other axes pass."""
    rank = len(op.shape(0))
    default = {"LRN": 1, "TopK": -1}.get(op.type, 0)
    axes = op.ints(1, "axis") if op.type.startswith("Cum") else [int(op.attribute("axis", default))]
    if axes is None:
        return
    axis = axes[0] % rank
    dropped = op.type in ("ArgMax", "ArgMin") and not op.attribute("keepdims", 1)
    for k in range(rank):
        if k != axis:
            labels = op.take(0, k)
            for o in range(len(op.node.outputs)):
                op.give(k - (dropped and k > axis), labels, o)


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
    for k in over:
        if op.type in SUMS:
            op.sink(0, k)
        elif op.type == "ReduceMean":
            op.normalised(0, k)
