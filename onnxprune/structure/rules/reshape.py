"""Operators that regroup axes, and run themselves on labels."""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule


@rule("Transpose")
def transpose(op: Op) -> None:
    """Axes change places.

    A constant is transposed in the graph only where something else needs it as it is (the table
    of an embedding that is also the last layer): both uses shrink together.
    """
    rank = len(op.shape(0))
    for axis, source in enumerate(op.attribute("perm", range(rank)[::-1])):
        labels = op.take(0, int(source))
        if op.is_constant(0) and op.shape(0)[source] > 1:
            labels = op.fresh(op.shape(0)[source])
            op.site(0, int(source), labels)
        op.give(axis, labels)


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Op) -> None:
    """Axes split into factors and factors merge into axes, in row-major order.

    Input and output axes are cut into the smallest runs with equal products; inside a run the
    sizes of both sides nest (their common factors) or the run's labels are frozen.
    """
    implicit = op.type == "Squeeze" and op.ints(1, "axes") is None
    if implicit or not op.labelled(0):
        return  # without axes, Squeeze would also drop an axis that shrinks to one channel
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
        computed = op.type == "Reshape" and op.value(1) is None  # else the size is the model's own
        if (
            computed
            and op.loose()
            and any(p is None and n > 1 for p, n in zip(pieces, factors, strict=True))
        ):
            for piece in pieces:
                op.freeze(piece, "meets an axis of which other sizes could not be tried")
            continue
        for axis, dims in _take_factors(op.out_shape(), outer, factors):
            own = [pieces.pop(0) for _ in dims]
            merged = op.merge(own, dims)
            op.give(axis, merged)
            if merged is not None:
                counted[axis] = merged
    if op.type == "Reshape":
        op.sizes(counted, 1)


AxisRun = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]


def _reshape_runs(inner: tuple[int, ...], outer: tuple[int, ...]) -> list[AxisRun]:
    """Cut axes into runs ``(input axes, output axes, common factors or None)``."""
    runs: list[AxisRun] = []
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
