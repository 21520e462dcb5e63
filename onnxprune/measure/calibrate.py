"""Calibrate: gather per-class activation statistics in one streaming pass.

The model is extended with reductions, so that only ``[samples, channels]`` leave onnxruntime,
never feature maps. GlobalAveragePool does it where it applies, because onnxruntime keeps its
blocked layout for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.arrays import F64, I64
from onnxprune.errors import CalibrationError
from onnxprune.measure.statistics import ActivationStats
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.shapes import Shapes
from onnxprune.model.storage import draft
from onnxprune.samples.dataset import Batch
from onnxprune.structure.structure import Point

ROWS = 256
"""Samples that are reduced to statistics at once; fewer make many small steps."""

MEMORY = 1 << 30
"""Bytes that the means of all classes may take at once, roughly."""

SAME = 1e-5
"""Relative deviation below which values are the same but for rounding."""

_PREFIX = "onnxprune/mean/"
_SQUARE = "onnxprune/square/"


@dataclass(frozen=True)
class Watched:
    """A model, and where its activations are watched.

    Attributes:
        model: the model.
        shapes: its observed shapes.
        points: tensors and channel axes; those without an axis of samples are left out.
    """

    model: Model
    shapes: Shapes
    points: Sequence[Point]


@dataclass(frozen=True)
class _Reduction:
    """How one point is reduced: the batch axis and the axes that vanish."""

    point: Point
    batch_axis: int
    over: tuple[int, ...]
    channels: int


def calibrate(
    watched: Watched,
    read: Callable[[], Iterable[Batch]],
    *,
    classes: int,
    squares: bool = False,
    runner: Runner = PLAIN,
) -> dict[Point, ActivationStats]:
    """Gather the statistics of channel means where a model is watched.

    Args:
        watched: the model and the points.
        read: streams the labelled samples, each batch padded if the model's batch is fixed;
            more than once where the classes are too many for :data:`MEMORY`.
        classes: number of classes that occur.
        squares: also gather mean squares (see :attr:`ActivationStats.square`).
        runner: runs the models.

    Returns:
        Statistics by point, in the order of the points.

    Raises:
        ModelError: if the model cannot be run.
        CalibrationError: if an activation is NaN or infinite (names the tensor), or if all
            samples are the same.
    """
    reductions = [r for p in dict.fromkeys(watched.points) if (r := _reduction(p, watched.shapes))]
    found: dict[Point, ActivationStats] = {}
    for some in _passes(reductions, max(classes, 1)):
        total = _gather(watched.model, some, read(), squares, runner)
        if not len(total.count):
            raise CalibrationError("there are no calibration samples")
        bounds = np.cumsum([0, *(r.channels for r in some)])
        for r, (a, b) in zip(some, itertools.pairwise(bounds), strict=True):
            found[r.point] = total.columns(int(a), int(b))
    _check_variation(list(found.values()))
    return found


def _passes(reductions: Sequence[_Reduction], classes: int) -> list[list[_Reduction]]:
    """Divide what is gathered so that the means of a pass, twice, fit into the memory."""
    most = MEMORY // (2 * 8 * classes)
    passes: list[list[_Reduction]] = []
    for reduction in reductions:
        if passes and sum(r.channels for r in [*passes[-1], reduction]) <= most:
            passes[-1].append(reduction)
        else:
            passes.append([reduction])
    return passes


def _gather(
    model: Model,
    reductions: Sequence[_Reduction],
    batches: Iterable[Batch],
    squares: bool,
    runner: Runner,
) -> ActivationStats:
    """Return the statistics of all channels of some points, side by side."""
    proto, held = draft(model.proto)
    _add_reductions(proto, model, reductions, squares)
    session = runner.session(proto, held=held)
    kinds = [_PREFIX, _SQUARE] if squares else [_PREFIX]
    outputs = [kind + _key(r.point) for kind in kinds for r in reductions]
    total = ActivationStats.empty(sum(r.channels for r in reductions), squares)
    pending: list[tuple[F64, F64 | None, I64]] = []
    for batch in batches:
        values = session.run_rows(batch.feeds, len(batch), model.fixed_batch, outputs)
        columns = [np.empty((len(batch), 0)), *(_per_sample(v, len(batch)) for v in values)]
        means = np.concatenate(columns[: len(reductions) + 1], axis=1)
        _check_finite(means, reductions)
        square = np.concatenate(columns[len(reductions) + 1 :], axis=1) if squares else None
        pending.append((means, square, batch.labels))
        if sum(len(labels) for _, _, labels in pending) >= ROWS:
            total = total.merge(_stats(pending))
            pending = []
    return total.merge(_stats(pending)) if pending else total


def _stats(parts: Sequence[tuple[F64, F64 | None, I64]]) -> ActivationStats:
    squares = [square for _, square, _ in parts if square is not None]
    return ActivationStats.of(
        np.concatenate([means for means, _, _ in parts]),
        np.concatenate([labels for _, _, labels in parts]),
        np.concatenate(squares) if squares else None,
    )


def _key(point: Point) -> str:
    return f"{point[0]}/{point[1]}"


def _reduction(point: Point, shapes: Shapes) -> _Reduction | None:
    """Find the batch axis of a tensor: the first other axis that holds whole batches."""
    tensor, axis = point
    if not shapes.has(tensor):
        return None
    sizes = shapes.first[tensor]
    holders = (k for k in range(len(sizes)) if k != axis and shapes.holds_samples(tensor, k))
    batch_axis = next(holders, None)
    if batch_axis is None or (batch_axis and shapes.batch == shapes.other_batch):
        return None
    over = tuple(k for k in range(len(sizes)) if k not in (axis, batch_axis))
    return _Reduction(point, batch_axis, over, sizes[axis])


def _add_reductions(
    proto: onnx.ModelProto, model: Model, reductions: Sequence[_Reduction], squares: bool
) -> None:
    """Let a copy of a model return these reductions in place of its outputs."""
    types = model.types
    del proto.graph.output[:]
    for reduction in reductions:
        tensor, _ = reduction.point
        key = _key(reduction.point)
        double = tensor in types and types[tensor].tensor_type.elem_type == TensorProto.DOUBLE
        _append_mean(proto, reduction, tensor, _PREFIX + key, model.opset, double)
        if squares:
            squared = f"onnxprune/squared/{key}"
            proto.graph.node.append(helper.make_node("Mul", [tensor, tensor], [squared]))
            _append_mean(proto, reduction, squared, _SQUARE + key, model.opset, double)


def _append_mean(
    proto: onnx.ModelProto,
    reduction: _Reduction,
    source: str,
    result: str,
    opset: int,
    double: bool,
) -> None:
    """Append nodes that reduce ``source`` to ``[rows, channels]``."""
    graph, (_, axis) = proto.graph, reduction.point
    over, batch_axis = reduction.over, reduction.batch_axis
    rank = len(over) + 2
    if (batch_axis, axis) == (0, 1) and 3 <= rank <= 5 and not double:
        pooled = f"{result}/pooled"
        graph.node.append(helper.make_node("GlobalAveragePool", [source], [pooled]))
        graph.node.append(helper.make_node("Flatten", [pooled], [result]))
    else:
        reduced = source
        if over and opset >= 18:
            axes = f"{result}/axes"
            graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [len(over)], over))
            reduced = f"{result}/reduced"
            graph.node.append(helper.make_node("ReduceMean", [source, axes], [reduced], keepdims=0))
        elif over:
            reduced = f"{result}/reduced"
            graph.node.append(
                helper.make_node("ReduceMean", [source], [reduced], axes=over, keepdims=0)
            )
        last = helper.make_node("Identity", [reduced], [result])
        if axis < batch_axis:
            last = helper.make_node("Transpose", [reduced], [result], perm=[1, 0])
        graph.node.append(last)
    graph.output.append(helper.make_empty_tensor_value_info(result))


def _per_sample(values: F64, samples: int) -> F64:
    """Average the rows of each sample: axis 0 may be samples x windows."""
    rows = np.asarray(values, dtype=np.float64)
    result: F64 = rows.reshape(samples, -1, rows.shape[1]).mean(axis=1)
    return result


def _check_finite(means: F64, reductions: Sequence[_Reduction]) -> None:
    finite = np.isfinite(means).all(axis=0)
    if not finite.all():
        bounds = np.cumsum([r.channels for r in reductions])
        bad = reductions[int(np.searchsorted(bounds, np.argmin(finite), side="right"))]
        raise CalibrationError(
            f"activations of tensor '{bad.point[0]}' are NaN or infinite on the calibration "
            "data; check the preprocessing and the model"
        )


def _check_variation(found: Sequence[ActivationStats]) -> None:
    """Refuse samples that the model cannot tell apart: nothing can be learned from them."""
    samples = int(found[0].count.sum()) if found else 0
    if samples < 2 or not any(stats.mean.size for stats in found):
        return
    for stats in found:
        mean = stats.overall_mean()
        deviation = np.sqrt((stats.m2 + stats.count @ (stats.mean - mean) ** 2) / samples)
        if deviation.max(initial=0.0) > SAME * np.abs(mean).max(initial=0.0):
            return
    raise CalibrationError(
        f"all {samples} calibration samples are the same to the model: no activation differs "
        "between them, so nothing can be learned from them; check how they were made"
    )
