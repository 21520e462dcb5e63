"""Through the rectifier: fit a layer to what the one behind it passes. Numpy and scipy only.

Where the original gives less than a rectifier passes, a pruned model may give any such value:
the error of an output ``v`` for a wanted ``t`` is ``max(v - low, 0)^2`` if ``t <= low``,
``max(high - v, 0)^2`` if ``t >= high``, and ``(v - t)^2`` in between. Counting only what passes
leaves the weights more freedom than plain least squares (the nonlinear case of Zhang et al.,
arXiv 1505.06798, section 3.2). The error is convex in the weights, and majorised by that of
plain least squares to targets that are moved as far as they may be. Each step solves that, from
where the last two steps point to (Nesterov's acceleration, as in FISTA: Beck and Teboulle, SIAM
J. Imaging Sciences 2(1), 2009, section 4), and one that does not lower the ridge objective is not
taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.arrays import F64, Array, Bool
from onnxprune.linear.moments import Moments
from onnxprune.linear.ridge import Inverse

STEPS = 12
"""The most steps for one layer."""

ENOUGH = 1e-2
"""A step that lowers the error by less, relative to it, is the last."""

KEPT_BYTES = 1 << 28
"""Bytes of a layer's rows that are kept for the steps; more rows than fit are thinned out."""

FACTOR_BYTES = 1 << 30
"""Bytes that the factors of a layer's rows may take, where each has a support of its own."""


@dataclass
class Rows:
    """Some rows of a layer, by convolution group.

    Args:
        bounds: what passes the rectifier, lowest and highest.
        chunks: in how many chunks the rows come.
    """

    bounds: tuple[float, float]
    chunks: int
    _parts: list[tuple[Array, Array, Array | None]] = field(default_factory=list)

    def add(self, inputs: Array, targets: Array, skip: Array | None) -> None:
        """Add rows.

        Args:
            inputs: ``[groups, rows, width]``.
            targets: what the layer should give for them, ``[groups, rows, outputs]``.
            skip: what is added to that before the rectifier, likewise.
        """
        step = max(-(-inputs.nbytes * self.chunks // KEPT_BYTES), 1)
        thinned = None if skip is None else skip[:, ::step]
        self._parts.append((inputs[:, ::step], targets[:, ::step], thinned))

    def group(self, g: int) -> tuple[Array, Array, Array | None]:
        """Return the rows of one group, arranged as in :meth:`add` but for the groups.

        Returns:
            Inputs, targets, and what is added, or None.
        """
        xs, ys, skips = zip(*self._parts, strict=True)
        skip = None if skips[0] is None else np.concatenate([s[g] for s in skips])
        return np.concatenate([x[g] for x in xs]), np.concatenate([y[g] for y in ys]), skip


def factors_fit(support: Bool) -> bool:
    """Whether the factors of rows with these supports are small enough to be kept.

    Args:
        support: the weights of each row that may differ from zero, ``bool [..., rows, width]``.
    """
    return 8 * int((support.sum(axis=-1) ** 2).sum()) <= FACTOR_BYTES


def fit_rectified(
    rows: Rows,
    moments: Sequence[Moments],
    start: Sequence[F64],
    old: Sequence[F64],
    relative: float,
    support: Sequence[Bool] | None = None,
) -> tuple[list[F64], F64]:
    """Lower the error that passes the rectifier, starting from a least-squares fit.

    Args:
        rows: some rows of the layer, whose errors are counted.
        moments: of each group, of all rows.
        start: weights of each group to start from, ``float64 [outputs, width]``.
        old: what the ridge pulls towards (see :func:`onnxprune.linear.ridge.ridge`), likewise.
        relative: lambda as a multiple of the mean variance of the inputs.
        support: weights that may differ from zero, ``bool [outputs, width]``; default all.

    Returns:
        The weights of each group, and the biases of all, ``float64 [groups * outputs]``.
    """
    weights: list[F64] = []
    biases: list[F64] = []
    for g, own in enumerate(moments):
        allowed = None if support is None else support[g]
        if allowed is not None and not factors_fit(allowed):
            weights.append(start[g])
            biases.append(own.intercept(start[g]))
            continue
        fitted, bias = _fit_group(
            rows.bounds, rows.group(g), own, start[g], old[g], relative, allowed
        )
        weights.append(fitted)
        biases.append(bias)
    return weights, np.concatenate(biases)


def _fit_group(
    bounds: tuple[float, float],
    rows: tuple[Array, Array, Array | None],
    moments: Moments,
    start: F64,
    old: F64,
    relative: float,
    support: Bool | None,
) -> tuple[F64, F64]:
    x, y, skip = rows
    damping = moments.damping(relative)
    mean = moments.mean
    weights, bias = start, moments.intercept(start) + start @ mean
    if damping == 0.0:
        return start, moments.intercept(start)
    inverse = Inverse.of(moments, relative, support)
    origin = old if support is None else old * support
    dtype = np.promote_types(np.promote_types(x.dtype, y.dtype), np.float32)
    x = x.astype(dtype) - mean.astype(dtype)
    y = y.astype(dtype)
    gap = Gap(bounds, y, 0.0 if skip is None else skip.astype(dtype))
    before = best = weights, bias
    last, steps = np.inf, 0
    for _ in range(STEPS):
        left = gap(x @ weights.T.astype(dtype) + bias.astype(dtype))
        pull = damping * float(((weights - origin) ** 2).sum())
        error = float(np.einsum("ro,ro->", left, left, dtype=np.float64)) / len(x) + pull
        if not error < last:
            if steps < 2:
                break
            weights, bias = before = best  # it swung too far: from there on again, at rest
            last, steps = np.inf, 0
            continue
        best = weights, bias
        if error > (1 - ENOUGH) * last:
            break
        last = error
        slope = (left.T @ x).astype(np.float64) / len(x) - damping * (weights - origin)
        after = weights + inverse(slope), bias + left.mean(axis=0, dtype=np.float64)
        swing = steps / (steps + 3)
        weights, bias = (b + swing * (b - a) for a, b in zip(before, after, strict=True))
        before, steps = after, steps + 1
    return best[0], best[1] - best[0] @ mean


class Gap:
    """What outputs lack to what is wanted, as far as a rectifier passes it.

    Args:
        bounds: what passes the rectifier, lowest and highest.
        targets: what is wanted, before ``skip`` is added.
        skip: what is added to the outputs before the rectifier.
    """

    def __init__(self, bounds: tuple[float, float], targets: Array, skip: Array | float) -> None:
        total = targets + skip
        self._wanted, self._limits = targets, []
        for bound, outside, clip in (
            (bounds[0], total <= bounds[0], np.minimum),
            (bounds[1], total >= bounds[1], np.maximum),
        ):
            if np.isfinite(bound):
                self._wanted = np.where(outside, targets.dtype.type(bound) - skip, self._wanted)
                self._limits.append((outside, clip))

    def __call__(self, outputs: Array) -> Array:
        """Return the gap of outputs of the shape of the targets."""
        gap: Array = self._wanted - outputs
        for outside, clip in self._limits:
            clip(gap, 0.0, out=gap, where=outside)
        return gap
