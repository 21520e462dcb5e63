"""Second moments: means and covariances of what the layers of a model read, in one walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, Array
from onnxprune.linear.layer import Layer
from onnxprune.linear.moments import Enough, Moments
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, samples_of
from onnxprune.model.stepwise import Walk

MAX_WIDTH = 1536
"""Width beyond which a convolution's covariance is that of its channels, not of its patches."""

MOMENT_ROWS = Enough(12_000, each_input=20)
"""Rows that a covariance is taken from."""


@dataclass(frozen=True)
class InputMoments:
    """First and second moments of what one group of a layer reads.

    Attributes:
        mean: ``float64 [width]``.
        covariance: ``float64 [width, width]``.
    """

    mean: F64
    covariance: F64


def input_moments(
    model: Model,
    layers: Sequence[Layer],
    chunks: Sequence[Feeds],
    *,
    seed: int = 0,
    runner: Runner = PLAIN,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[InputMoments]]:
    """Return the moments of each layer's inputs, by its node: one for each group.

    For convolutions wider than :data:`MAX_WIDTH` those of the middle of the kernel only (see
    :func:`narrow`). Layers whose activations overflow are left out.

    Args:
        model: the model (prepared, see :func:`onnxprune.linear.layer.prepare`).
        layers: its layers, in order.
        chunks: inputs of the samples.
        seed: of the drawn positions.
        runner: runs the models.
        progress: called with 1 after each layer.
    """
    walk = Walk(model, chunks, runner=runner)
    samples = sum(map(samples_of, chunks))
    result: dict[str, list[InputMoments]] = {}
    for k, layer in enumerate(layers):
        later = [name for r in layers[k + 1 :] for name in (r.data, r.output)]
        found = walk.step([layer.data, layer.output], later)
        rng = np.random.default_rng([seed, k])
        count = MOMENT_ROWS.of_each(samples, layer.form.width)
        moments: list[Moments] = []
        for x, y in found:
            rows = layer.form.rows(x, y, count, rng)
            inputs = _narrowed(layer, layer.form.inputs(x, y.shape, rows))
            if not moments:
                shifts = inputs.mean(axis=1, dtype=np.float64)
                moments = [Moments.shifted(s, np.zeros(0)) for s in shifts]
            for own, values in zip(moments, inputs, strict=True):
                own.add(values, np.zeros((len(values), 0), dtype=values.dtype))
        if all(m.finite for m in moments):
            result[layer.node] = [InputMoments(m.mean, m.centred()[0]) for m in moments]
        progress(1)
    return result


def narrow(layer: Layer) -> bool:
    """Whether only the layer's channels are told apart, not the offsets of its kernel."""
    return layer.form.spatial and layer.form.width > MAX_WIDTH


def _narrowed(layer: Layer, inputs: Array) -> Array:
    """Of the inputs of a layer that is too wide, keep the middle of the kernel."""
    if not narrow(layer):
        return inputs
    offsets = layer.form.offsets
    channels = layer.form.width // offsets
    return inputs[..., offsets // 2 * channels : (offsets // 2 + 1) * channels]


def to_rows(layer: Layer, matrix: Array) -> Array:
    """Arrange the weights of one group ``[outputs, width]`` to go with its moments.

    For a narrow layer each kernel offset becomes rows of its own:
    ``[offsets * outputs, channels]``.
    """
    if not narrow(layer):
        return matrix
    offsets = layer.form.offsets
    split = matrix.reshape(len(matrix), offsets, -1)
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(offsets * len(matrix), -1)


def from_rows(layer: Layer, rows: F64) -> F64:
    """Invert :func:`to_rows`."""
    if not narrow(layer):
        return rows
    offsets = layer.form.offsets
    split = rows.reshape(offsets, -1, rows.shape[1]).swapaxes(0, 1)
    return np.ascontiguousarray(split).reshape(split.shape[0], -1)
