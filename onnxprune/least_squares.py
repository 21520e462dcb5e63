"""Least squares: fit every layer of a pruned model to what it should compute, in order.

The pass is sequential and asymmetric (He et al., arXiv 1707.06168, section 3.2): a layer sees
its input in the pruned model as recovered so far, and is fitted to the output it has in the
original, so that it corrects errors made before it. Where its output is added to a skip
connection, the target includes the error that the skip connection carries. Where a rectifier
follows, the fit goes on with what passes it (see :mod:`onnxprune.rectified`), and where only one
lies between two layers, both go on together once the second is fitted (see
:mod:`onnxprune.paired`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.graph import Model
from onnxprune.labels import F64, I64, Array
from onnxprune.layers import Layer, pairs
from onnxprune.paired import Half, Sample, fit_pair
from onnxprune.rectified import Gap, Rows, fit_rectified
from onnxprune.session import Feeds
from onnxprune.solve import Moments, ridge
from onnxprune.unfold import Product, Values, positions_first
from onnxprune.walk import Walk

ROWS = 72_000
"""Rows that a layer is fitted on at least, where the samples have so many."""

ROWS_PER_INPUT = 150
"""Rows for each input of a layer."""

DAMPING = (1e-4, 1e-3, 1e-2, 1e-1)
"""Choices of lambda (see :func:`onnxprune.solve.ridge`), by the error on the check rows: the first
from which it rises."""

CHECK_EVERY = 5
"""One sample of so many is a check sample."""

PAIR_ROWS, PAIR_MACS = 64_000, 5e9
"""Rows that a pair of layers is fitted on at most, and the operations of both layers on them."""

PAIR_BYTES, PAIR_COPIES = 1 << 29, 12
"""Bytes that the samples of a pair may take, and how often the largest of what a pair reads and
gives is there, copies and what is in between included."""


@dataclass(frozen=True)
class Fit:
    """The outcome for one layer.

    Attributes:
        layer: the layer.
        constants: new values of its weight and bias by name.
        error_before: mean squared error on the check rows with the old weights and a refitted
            intercept, relative to the variance of the target.
        error_after: the same with the new weights of plain least squares.
        damping: the lambda that was chosen; None where the old weights were kept.
        rows: the number of rows that it was fitted on.
        inputs: the most weights of one output.
        note: why the layer was left as it was, or empty.
    """

    layer: Layer
    constants: dict[str, Array]
    error_before: float
    error_after: float
    damping: float | None
    rows: int
    inputs: int
    note: str = ""


def fit_layers(
    original: Model,
    pruned: Model,
    layers: Sequence[Layer],
    chunks: Sequence[Feeds],
    *,
    rows: float = 1.0,
    seed: int = 0,
    threads: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Fit]:
    """Fit the layers of a pruned model one after the other.

    Args:
        original: the model that was traced.
        pruned: its prepared pruned version (see :func:`onnxprune.layers.prepare`).
        layers: its layers, in order.
        chunks: inputs of the samples to fit on, in chunks that the models can run.
        rows: multiplies the number of rows that a layer is fitted on.
        seed: of the drawn positions.
        threads: onnxruntime threads.
        progress: called with 1 after each layer.
    """
    before, after = (Walk(m, chunks, threads=threads) for m in (original, pruned))
    samples = sum(_samples(c) for c in chunks)
    first_of = pairs(pruned, layers)
    firsts = {first.node for first in first_of.values()}
    solved: dict[str, _Solved] = {}
    for k, layer in enumerate(layers):
        rest = layers[k + 1 :]
        pending = {r.output for r in rest}
        skip = layer.skip
        if skip and after.depends_on(skip, pending | {layer.output}):
            skip = None  # what is added is not recovered yet; it will make up for this layer
        extra = [skip] if skip else []
        first = first_of.get(layer.node)
        later = [n for r in rest for n in (r.output, *([r.skip] if r.skip else []))]
        wanted = before.step([layer.output, *extra], [*later, layer.output])
        ahead = [first_of[r.node].data for r in (layer, *rest) if r.node in first_of]
        found = after.step(
            [layer.data, *extra, *ahead[: first is not None]],
            [*later, layer.output, *ahead, *(r.data for r in rest)],
        )
        rng = np.random.default_rng([seed, k])
        count = max(1, -(-int(rows * max(ROWS, ROWS_PER_INPUT * layer.form.width)) // samples))
        passed = layer.bounds if skip == layer.skip else (-np.inf, np.inf)
        drawn = np.empty(0, dtype=np.int64)
        if first and first.node in solved:
            drawn = _pair_samples((first, layer), found, wanted, rows)
        alone = layer.node not in firsts and not len(drawn)
        kept = Rows(passed, len(found)) if alone and np.isfinite(passed).any() else None
        parts = _moments(layer, [v[: 1 + len(extra)] for v in found], wanted, count, rng, kept)
        fit = _fit(layer, after, parts, kept)
        for name, values in fit.constants.items():
            after.replace(name, values)
        if fit.constants and (first or layer.node in firsts):
            solved[layer.node] = _Solved([f.plus(c) for f, c in parts], fit.damping)
        if first and len(drawn) and fit.constants:
            pair = _fit_pair((first, layer), solved, after, found, wanted, drawn, passed)
            for name, values in pair.items():
                after.replace(name, values)
            after.forget(layer.data)
            fit = replace(fit, constants=fit.constants | pair)
        progress(1)
        yield fit


@dataclass(frozen=True)
class _Solved:
    """What the fit of a layer found out.

    Attributes:
        moments: of its inputs, for each group.
        damping: the lambda that was chosen; None where the old weights were kept.
    """

    moments: list[Moments]
    damping: float | None


def _pair_samples(
    pair: tuple[Layer, Layer], found: list[list[Array]], wanted: list[list[Array]], share: float
) -> I64:
    """Return the samples to fit a pair of layers on, none where there are too few.

    Args:
        pair: the layers.
        found: see :func:`_fit_pair`.
        wanted: likewise.
        share: multiplies the number of samples.
    """
    data = found[0][-1], found[0][0], wanted[0][0]
    forms = [layer.form for layer in pair]
    if not all(f.batched(x, y) for f, x, y in zip(forms, data[:2], data[1:], strict=True)):
        return np.empty(0, dtype=np.int64)
    positions = [f.positions(y.shape) for f, y in zip(forms, data[1:], strict=True)]
    macs = sum(p * np.prod(f.shape) for p, f in zip(positions, forms, strict=True))
    most = share * min(PAIR_ROWS / max(positions), PAIR_MACS / macs)
    each = PAIR_COPIES * max(v.nbytes // len(v) for v in data)
    count = sum(len(v[0]) for v in found)
    size = int(min(count, most, PAIR_BYTES / each))
    return np.linspace(0, count - 1, size if size >= CHECK_EVERY else 0).astype(np.int64)


def _fit_pair(
    pair: tuple[Layer, Layer],
    solved: Mapping[str, _Solved],
    walk: Walk,
    found: list[list[Array]],
    wanted: list[list[Array]],
    drawn: I64,
    passed: tuple[float, float],
) -> dict[str, Array]:
    """Return new constants of two layers that follow each other; none if they cannot be held.

    Args:
        pair: the layers.
        solved: what the fit of each found out.
        walk: of the pruned model.
        found: of each chunk what the second layer reads, what is added to its output if that is
            to be made up for, and what the first layer reads.
        wanted: of each chunk the output of the second layer in the original, and what is added.
        drawn: the samples to use.
        passed: what passes the rectifier behind, lowest and highest.
    """
    first, second = pair
    is_check = np.arange(len(drawn)) % CHECK_EVERY == CHECK_EVERY - 1

    def flat(values: list[Array], axis: int) -> Values:
        taken = positions_first(_taken(values, drawn), axis)
        return taken.astype(np.promote_types(taken.dtype, np.float32), copy=False)

    x = flat([v[-1] for v in found], first.form.data_axis)
    axis = second.form.output_axis
    targets = flat([_kept(v[0], second) for v in wanted], axis)
    skip = np.zeros_like(targets[:, :, :1])
    if len(wanted[0]) > 1:
        skip = flat([v[1] for v in found], axis)
        targets += flat([_kept(v[1], second) for v in wanted], axis) - skip
    shapes = [v.shape for v in (found[0][-1], found[0][0], wanted[0][0])]
    halves = [
        Half(
            Product(layer.form, inside, outside),
            layer.form.to_matrix(walk.constant(layer.weight)) * layer.alpha,
            walk.constant(layer.bias).reshape(-1),
            solved[layer.node].moments,
            solved[layer.node].damping or DAMPING[0],
            None if layer.support is None else layer.form.to_matrix(layer.support),
        )
        for layer, inside, outside in zip(pair, shapes[:2], shapes[1:], strict=True)
    ]
    if not all(half.usable for half in halves):
        return {}
    fitted, checked = (
        Sample(x, Gap(passed, targets, skip))
        for x, targets, skip in (
            [v.compress(own, axis=1) for v in (x, targets, skip)] for own in (~is_check, is_check)
        )
    )
    constants: dict[str, Array] = {}
    for layer, (weights, bias) in zip(
        pair, fit_pair(halves[0], halves[1], first.bounds, fitted, checked), strict=True
    ):
        constants[layer.weight] = layer.form.to_tensor(weights / (layer.alpha or 1.0))
        constants[layer.bias] = bias.reshape(layer.bias_shape)
    return constants if all(walk.holds(n, v) for n, v in constants.items()) else {}


def _taken(chunks: Sequence[Array], drawn: I64) -> Array:
    """Take samples by their number over all chunks, in ascending order."""
    starts = np.cumsum([0, *map(len, chunks)])
    bounds = np.searchsorted(drawn, starts)
    return np.concatenate(
        [
            chunk[drawn[a:b] - start]
            for chunk, start, a, b in zip(chunks, starts[:-1], bounds[:-1], bounds[1:], strict=True)
        ]
    )


def _samples(feeds: Feeds) -> int:
    return max((len(v) for v in feeds.values() if v.ndim), default=1)


def _moments(
    layer: Layer,
    found: list[list[Array]],
    wanted: list[list[Array]],
    count: int,
    rng: np.random.Generator,
    kept_rows: Rows | None,
) -> list[tuple[Moments, Moments]]:
    """Gather the moments of the fit rows and of the check rows for each group.

    ``count`` rows are drawn from each sample; they are added to ``kept_rows``, if given.
    """
    form = layer.form
    result: list[tuple[Moments, Moments]] = []
    seen = 0
    for (x, *skips), (y, *targets) in zip(found, wanted, strict=True):
        kept_y = _kept(y, layer)
        rows = form.rows(x, kept_y, count, rng)
        inputs = form.inputs(x, kept_y.shape, rows)
        outputs, added = form.targets(kept_y, rows), None
        for ours, theirs in zip(skips, targets, strict=True):
            added = form.targets(ours, rows)
            outputs = outputs + form.targets(_kept(theirs, layer), rows) - added
        if kept_rows is not None:
            kept_rows.add(inputs, outputs, added)
        check = _check_rows(rows, seen)
        seen += len(y)
        if not result:
            shifts = [inputs.mean(axis=1, dtype=np.float64), outputs.mean(axis=1, dtype=np.float64)]
            result = [
                (Moments.shifted(sx, sy), Moments.shifted(sx, sy))
                for sx, sy in zip(*shifts, strict=True)
            ]
        for (fitted, checked), xs, ys in zip(result, inputs, outputs, strict=True):
            fitted.add(xs[~check], ys[~check])
            checked.add(xs[check], ys[check])
    return result


def _check_rows(rows: Sequence[I64], seen: int) -> Array:
    index, flat = rows
    source = index + seen if index.any() else flat
    return np.asarray(source % CHECK_EVERY == CHECK_EVERY - 1)


def _kept(values: Array, layer: Layer) -> Array:
    axis = layer.form.output_axis
    if len(layer.kept) == values.shape[axis]:
        return values
    return values.take(layer.kept, axis=axis)


def _fit(
    layer: Layer, walk: Walk, parts: list[tuple[Moments, Moments]], kept_rows: Rows | None
) -> Fit:
    """Choose lambda on the check rows, then solve on all rows."""
    form = layer.form
    old = form.to_matrix(walk.constant(layer.weight)) * layer.alpha
    support = None if layer.support is None else list(form.to_matrix(layer.support))

    def solved(g: int, moments: Moments, damping: float) -> F64:
        return ridge(moments, old[g], damping, None if support is None else support[g])

    def error(weights: Sequence[F64]) -> float:
        return sum(
            checked.error(w, fitted.intercept(w))
            for (fitted, checked), w in zip(parts, weights, strict=True)
        )

    rows = parts[0][0].count + parts[0][1].count
    inputs = form.width if support is None else max(int(s.sum(axis=-1).max()) for s in support)
    if not all(f.finite and c.finite for f, c in parts):
        return Fit(
            layer, {}, float("nan"), float("nan"), None, rows, inputs, "activations overflow"
        )
    variance = sum(
        float(np.maximum(c.yy / max(c.count, 1) - (c.y / max(c.count, 1)) ** 2, 0).sum())
        for _, c in parts
    )
    scale = max(variance, 1e-30)
    before, best, chosen = error(list(old)), np.inf, None
    if not layer.shared:
        for damping in DAMPING:  # it falls, then it rises
            left = error([solved(g, f, damping) for g, (f, _) in enumerate(parts)])
            if not left < best:
                break
            best, chosen = left, damping
    note = ""
    whole = [f.plus(c) for f, c in parts]
    if chosen is None or not best < before:
        weights, chosen = list(old), None
        best = before
    else:
        weights = [solved(g, m, chosen) for g, m in enumerate(whole)]
    bias = np.concatenate([m.intercept(w) for m, w in zip(whole, weights, strict=True)])
    if chosen is not None and kept_rows is not None:
        weights, bias = fit_rectified(kept_rows, whole, weights, list(old), chosen, support)
    constants = {layer.bias: bias.reshape(layer.bias_shape)}
    if chosen is not None:
        constants[layer.weight] = form.to_tensor(np.stack(weights) / (layer.alpha or 1.0))
    if not all(walk.holds(name, values) for name, values in constants.items()):
        constants, note = {}, "the fitted weights exceed their number format"
    return Fit(layer, constants, before / scale, best / scale, chosen, rows, inputs, note)
