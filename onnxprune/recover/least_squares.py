"""Least squares: fit every layer of a pruned model to what it should compute, in order.

The pass is sequential and asymmetric (He et al., arXiv 1707.06168, section 3.2): a layer sees
its input in the pruned model as recovered so far, and is fitted to the output it has in the
original, so that it corrects errors made before it. Where its output is added to a skip
connection, the target includes the error that the skip connection carries. Where a rectifier
follows, the fit goes on with what passes it (see :mod:`onnxprune.recover.through_rectifier`), and
where only one lies between two layers, both go on together once the second is fitted (see
:mod:`onnxprune.recover.pair_fit`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.arrays import F64, I64, Array
from onnxprune.linear.layer import Layer
from onnxprune.linear.moments import CHECK_EVERY, Moments
from onnxprune.linear.ridge import ridge
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds
from onnxprune.model.stepwise import Walk
from onnxprune.recover.pairs import LayerPairs
from onnxprune.recover.through_rectifier import Rows, fit_rectified

ROWS = 72_000
"""Rows that a layer is fitted on at least, where the samples have so many."""

ROWS_PER_INPUT = 150
"""Rows for each input of a layer."""

DAMPING = (1e-4, 1e-3, 1e-2, 1e-1)
"""Choices of lambda (see :func:`onnxprune.linear.ridge.ridge`), by the error on the check rows:
the first from which it rises."""


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
    runner: Runner = PLAIN,
) -> Iterator[Fit]:
    """Fit the layers of a pruned model one after the other.

    Args:
        original: the model that was traced.
        pruned: its prepared pruned version (see :func:`onnxprune.linear.layer.prepare`).
        layers: its layers, in order.
        chunks: inputs of the samples to fit on, in chunks that the models can run.
        rows: multiplies the number of rows that a layer is fitted on.
        seed: of the drawn positions.
        runner: runs the models, and hears of each layer.
    """
    before, after = (Walk(m, chunks, runner=runner) for m in (original, pruned))
    samples = sum(_samples(c) for c in chunks)
    progress = runner.progress("recover", len(layers))
    pairs = LayerPairs(pruned, layers, rows, runner)
    for k, layer in enumerate(layers):
        rest = layers[k + 1 :]
        pending = {r.output for r in rest}
        skip = layer.skip
        if skip and after.depends_on(skip, pending | {layer.output}):
            skip = None  # what is added is not recovered yet; it will make up for this layer
        extra = [skip] if skip else []
        later = [n for r in rest for n in (r.output, *([r.skip] if r.skip else []))]
        wanted = before.step([layer.output, *extra], [*later, layer.output])
        found = after.step(
            [layer.data, *extra, *pairs.reads([layer])],
            [*later, layer.output, *pairs.reads([layer, *rest]), *(r.data for r in rest)],
        )
        rng = np.random.default_rng([seed, k])
        count = max(1, -(-int(rows * max(ROWS, ROWS_PER_INPUT * layer.form.width)) // samples))
        passed = layer.bounds if skip == layer.skip else (-np.inf, np.inf)
        drawn = pairs.drawn(layer, found, wanted)
        alone = not (pairs.begins(layer) or len(drawn)) and layer.fixed is None
        kept = Rows(passed, len(found)) if alone and np.isfinite(passed).any() else None
        parts = _moments(layer, [v[: 1 + len(extra)] for v in found], wanted, count, rng, kept)
        if layer.fixed is not None:
            added = np.split(layer.fixed, len(parts))
            parts = [(f.about(a), c.about(a)) for (f, c), a in zip(parts, added, strict=True)]
        fit = _fit(layer, after, parts, kept)
        constants = fit.constants
        _put(constants, after)
        if constants:
            pairs.note(layer, [f.plus(c) for f, c in parts], fit.damping or DAMPING[0])
            if len(drawn):
                joint = pairs.fit(layer, after, found, wanted, drawn, passed)
                _put(joint, after)
                after.forget(layer.data)
                fit = replace(fit, constants=constants | joint)
        progress(1)
        yield fit


def _put(constants: Mapping[str, Array], walk: Walk) -> None:
    for name, values in constants.items():
        walk.replace(name, values)


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
        kept_y = layer.staying(y)
        rows = form.rows(x, kept_y, count, rng)
        inputs = form.inputs(x, kept_y.shape, rows)
        outputs, added = form.targets(kept_y, rows), None
        for ours, theirs in zip(skips, targets, strict=True):
            added = form.targets(ours, rows)
            outputs = outputs + form.targets(layer.staying(theirs), rows) - added
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
    constants = {layer.bias: bias.reshape(layer.bias_shape)} if layer.fixed is None else {}
    if chosen is not None:
        constants[layer.weight] = form.to_tensor(np.stack(weights) / (layer.alpha or 1.0))
    if not all(walk.holds(name, values) for name, values in constants.items()):
        constants, note = {}, "the fitted weights exceed their number format"
    return Fit(layer, constants, before / scale, best / scale, chosen, rows, inputs, note)
