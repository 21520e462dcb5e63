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
from onnxprune.linear.moments import CHECK_EVERY, Enough, Moments
from onnxprune.linear.ridge import ridge
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, samples_of
from onnxprune.model.stepwise import Walk
from onnxprune.recover.pairs import LayerPairs, Observed
from onnxprune.recover.through_rectifier import Rows, fit_rectified

ROWS = Enough(72_000, each_input=150)
"""Rows that a layer is fitted on."""

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
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
    walk = Walk(pruned, chunks, runner=runner)
    samples = sum(map(samples_of, chunks))
    progress = runner.progress("recover", len(layers))
    pairs = LayerPairs(pruned, layers, rows, runner)
    observed = _observed(Walk(original, chunks, runner=runner), walk, layers, pairs)
    for k, (layer, seen) in enumerate(zip(layers, observed, strict=True)):
        rng = np.random.default_rng([seed, k])
        count = ROWS.of_each(samples, layer.form.width, share=rows)
        makes_up = layer.skip is None or seen[0].skip is not None
        passed = layer.bounds if makes_up else (-np.inf, np.inf)
        drawn = pairs.drawn(layer, seen)
        alone = not (pairs.begins(layer) or len(drawn)) and layer.fixed is None
        kept = Rows(passed, len(seen)) if alone and np.isfinite(passed).any() else None
        parts = _moments(layer, seen, count, rng, kept)
        if layer.fixed is not None:
            added = np.split(layer.fixed, len(parts))
            parts = [(f.about(a), c.about(a)) for (f, c), a in zip(parts, added, strict=True)]
        fit = _fit_layer(layer, walk, parts, kept)
        _put(fit.constants, walk)
        if fit.constants:
            pairs.note(layer, [f.plus(c) for f, c in parts], fit.damping or DAMPINGS[0])
            if len(drawn):
                joint = pairs.fit(layer, walk, seen, drawn, passed)
                _put(joint, walk)
                walk.forget(layer.data)
                fit = replace(fit, constants=fit.constants | joint)
        progress(1)
        yield fit


def _observed(
    before: Walk, after: Walk, layers: Sequence[Layer], pairs: LayerPairs
) -> Iterator[list[Observed]]:
    """Yield the activations around each layer, chunk by chunk, once those in front are fitted.

    Args:
        before: of the original.
        after: of the pruned model, whose constants are replaced in between.
        layers: the layers, in order.
        pairs: those among them that are fitted together.
    """
    for k, layer in enumerate(layers):
        rest, first = layers[k + 1 :], pairs.reads([layer])
        skip = [layer.skip] if layer.skip else []
        if skip and after.depends_on(skip[0], {r.output for r in layers[k:]}):
            skip = []  # what is added is not recovered yet; it will make up for this layer
        later = [n for r in rest for n in (r.output, *([r.skip] if r.skip else []))]
        later.append(layer.output)
        wanted = before.step([layer.output, *skip], later)
        found = after.step(
            [layer.data, *skip, *first],
            [*later, *pairs.reads([layer, *rest]), *(r.data for r in rest)],
        )
        yield [
            Observed(
                ours[0],
                theirs[0],
                ours[1] if skip else None,
                theirs[1] if skip else None,
                ours[-1] if first else None,
            )
            for ours, theirs in zip(found, wanted, strict=True)
        ]


def _put(constants: Mapping[str, Array], walk: Walk) -> None:
    for name, values in constants.items():
        walk.replace(name, values)


def _moments(
    layer: Layer,
    chunks: Sequence[Observed],
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
    for chunk in chunks:
        y = layer.staying(chunk.wanted)
        rows = form.rows(chunk.data, y, count, rng)
        inputs = form.inputs(chunk.data, y.shape, rows)
        outputs, added = form.targets(y, rows), None
        if chunk.skip is not None and chunk.wanted_skip is not None:
            added = form.targets(chunk.skip, rows)
            outputs = outputs + form.targets(layer.staying(chunk.wanted_skip), rows) - added
        if kept_rows is not None:
            kept_rows.add(inputs, outputs, added)
        check = _check_rows(rows, seen)
        seen += len(y)
        if not result:
            means = [v.mean(axis=1, dtype=np.float64) for v in (inputs, outputs)]
            result = [(Moments.shifted(*m), Moments.shifted(*m)) for m in zip(*means, strict=True)]
        for (fitted, checked), xs, ys in zip(result, inputs, outputs, strict=True):
            fitted.add(xs[~check], ys[~check])
            checked.add(xs[check], ys[check])
    return result


def _check_rows(rows: Sequence[I64], seen: int) -> Array:
    index, flat = rows
    source = index + seen if index.any() else flat
    return np.asarray(source % CHECK_EVERY == CHECK_EVERY - 1)


def _fit_layer(
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
        return Fit(layer, {}, np.nan, np.nan, None, rows, inputs, "activations overflow")
    scale = max(sum(c.target_variance for _, c in parts), 1e-30)
    before, best, chosen = error(list(old)), np.inf, None
    if not layer.shared:
        for damping in DAMPINGS:  # it falls, then it rises
            left = error([solved(g, f, damping) for g, (f, _) in enumerate(parts)])
            if not left < best:
                break
            best, chosen = left, damping
    whole = [f.plus(c) for f, c in parts]
    if chosen is None or not best < before:
        weights, chosen, best = list(old), None, before
    else:
        weights = [solved(g, m, chosen) for g, m in enumerate(whole)]
    bias = np.concatenate([m.intercept(w) for m, w in zip(whole, weights, strict=True)])
    if chosen is not None and kept_rows is not None:
        weights, bias = fit_rectified(kept_rows, whole, weights, list(old), chosen, support)
    constants = {layer.bias: bias.reshape(layer.bias_shape)} if layer.fixed is None else {}
    if chosen is not None:
        constants[layer.weight] = form.to_tensor(np.stack(weights) / (layer.alpha or 1.0))
    note = ""
    if not all(walk.holds(name, values) for name, values in constants.items()):
        constants, note = {}, "the fitted weights exceed their number format"
    return Fit(layer, constants, before / scale, best / scale, chosen, rows, inputs, note)
