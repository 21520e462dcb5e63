"""Pairs: two layers with a rectifier between them, and the samples to fit them on together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import I64, Array
from onnxprune.linear.blas import one_thread
from onnxprune.linear.layer import Layer, pairs
from onnxprune.linear.matrix_form import MatrixForm
from onnxprune.linear.moments import CHECK_EVERY, Moments
from onnxprune.linear.product import Product, channels_last
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.stepwise import Walk
from onnxprune.recover.pair_fit import Half, Sample, fit_pair
from onnxprune.recover.through_rectifier import Gap

MOST_ROWS = 64_000
"""Rows that a pair of layers is fitted on at most."""

MOST_MACS = 5e9
"""Multiply-accumulates of both layers on these rows at most."""

MOST_BYTES = 1 << 29
"""Bytes that may be held for that."""

COPIES = 8
"""Of the largest of the three tensors of a pair (what each layer reads, and what the second should
give), so many copies are held at once; with those of what is unfolded, one for each offset of the
kernels, they make up the bytes."""

BLOCK = 1 << 19
"""Bytes of the three tensors of a pair that go through it at once, so that caches hold them."""


@dataclass(frozen=True)
class Observed:
    """Activations around a layer for some samples, which both models were run on.

    Attributes:
        data: what the layer reads in the pruned model.
        wanted: what it gives in the original, channels that left included.
        skip: what is added to its output in the pruned model, by a skip connection; None where
            there is none, or nobody makes up for what changed in it.
        wanted_skip: what is added there in the original.
        first: what the first layer of its pair reads in the pruned model; None where it is not
            the second one of a pair.
    """

    data: Array
    wanted: Array
    skip: Array | None = None
    wanted_skip: Array | None = None
    first: Array | None = None


@dataclass(frozen=True)
class _Solved:
    """What the fit of a layer alone found out: moments of its inputs by group, and lambda."""

    moments: Sequence[Moments]
    damping: float


class LayerPairs:
    """The pairs among layers that are fitted one after the other.

    Once both layers of a pair are fitted alone, they are fitted together (see
    :mod:`onnxprune.recover.pair_fit`).

    Args:
        model: the prepared pruned model.
        layers: its layers, in order.
        share: multiplies the number of samples.
        runner: its threads work at blocks of samples; 0 for as many as there are processors.
    """

    def __init__(
        self, model: Model, layers: Sequence[Layer], share: float, runner: Runner = PLAIN
    ) -> None:
        self._first_of, self._share, self._runner = pairs(model, layers), share, runner
        self._firsts = {first.node for first in self._first_of.values()}
        self._solved: dict[str, _Solved] = {}

    def begins(self, layer: Layer) -> bool:
        """Whether a layer is the first of a pair."""
        return layer.node in self._firsts

    def reads(self, layers: Iterable[Layer]) -> list[str]:
        """Return what the first layers of pairs read whose second layers are among these."""
        return [self._first_of[la.node].data for la in layers if la.node in self._first_of]

    def note(self, layer: Layer, moments: Sequence[Moments], damping: float) -> None:
        """Keep what the fit of a layer alone found out, if it belongs to a pair.

        Args:
            layer: the layer.
            moments: of its inputs, for each group.
            damping: lambda as a multiple of the mean variance of the inputs.
        """
        if layer.node in self._firsts or layer.node in self._first_of:
            self._solved[layer.node] = _Solved(moments, damping)

    def drawn(self, second: Layer, chunks: Sequence[Observed]) -> I64:
        """Return the samples to fit the pair on that ends with a layer, ``int64``, ascending.

        There are none where it ends no pair, where the first layer could not be fitted, or where
        too few samples are within the bounds on rows, operations and bytes.

        Args:
            second: the layer.
            chunks: the activations around it, for all samples.
        """
        first = self._first_of.get(second.node)
        none = np.empty(0, dtype=np.int64)
        if first is None or first.node not in self._solved:
            return none
        halves, data = (first, second), _data(chunks[0], second)
        if not all(_matrix(h).batched(data[k], data[k + 1]) for k, h in enumerate(halves)):
            return none
        positions = [_matrix(h).positions(data[k + 1].shape) for k, h in enumerate(halves)]
        macs = sum(p * np.prod(h.form.shape) for p, h in zip(positions, halves, strict=True))
        copies = COPIES + first.form.offsets + second.form.offsets
        each = copies * max(v.nbytes // len(v) for v in data)
        most = min(MOST_ROWS / max(positions), MOST_MACS / macs) * self._share
        count = sum(len(chunk.data) for chunk in chunks)
        size = int(min(count, most, MOST_BYTES / each))
        return np.linspace(0, count - 1, size if size >= CHECK_EVERY else 0).astype(np.int64)

    def fit(
        self,
        second: Layer,
        walk: Walk,
        chunks: Sequence[Observed],
        drawn: I64,
        passed: tuple[float, float],
    ) -> dict[str, Array]:
        """Return new constants of the pair that ends with a layer; none if they cannot be held.

        Args:
            second: the layer, fitted alone already.
            walk: of the pruned model.
            chunks: the activations around it, for all samples.
            drawn: the samples to use, ``int64``.
            passed: what passes the rectifier behind, lowest and highest.
        """
        pair = self._first_of[second.node], second
        shapes = [v.shape for v in _data(chunks[0], second)]
        one, two = (self._half(pair[k], walk, shapes[k], shapes[k + 1]) for k in range(2))
        if not (one.usable and two.usable):
            return {}
        data = _gathered(pair, chunks, drawn)
        size = max(1, BLOCK // sum(v[:1].nbytes for v in data))

        def blocks(own: I64) -> list[Sample]:
            parts = np.array_split(own, -(-len(own) // size))
            taken = ([v[part] for v in data] for part in parts)
            return [Sample(one.product.unfold(x), Gap(passed, y, skip)) for x, y, skip in taken]

        is_check = np.arange(len(drawn)) % CHECK_EVERY == CHECK_EVERY - 1
        fitted, checked = (blocks(np.flatnonzero(own)) for own in (~is_check, is_check))
        workers = self._runner.threads or os.cpu_count() or 1
        with one_thread(), ThreadPoolExecutor(workers) as pool:
            solutions = fit_pair(one, two, pair[0].bounds, fitted, checked, pool.map)
        constants: dict[str, Array] = {}
        for layer, (weights, bias) in zip(pair, solutions, strict=True):
            constants[layer.weight] = layer.form.to_tensor(weights / (layer.alpha or 1.0))
            constants[layer.bias] = bias.reshape(layer.bias_shape)
        return constants if all(walk.holds(n, v) for n, v in constants.items()) else {}

    def _half(
        self, layer: Layer, walk: Walk, inside: Sequence[int], outside: Sequence[int]
    ) -> Half:
        form, solved = _matrix(layer), self._solved[layer.node]
        return Half(
            Product(form, inside, outside),
            form.to_matrix(walk.constant(layer.weight)) * layer.alpha,
            walk.constant(layer.bias).reshape(-1),
            solved.moments,
            solved.damping,
            None if layer.support is None else form.to_matrix(layer.support),
        )


def _matrix(layer: Layer) -> MatrixForm:
    assert isinstance(layer.form, MatrixForm)  # see pairs()
    return layer.form


def _data(chunk: Observed, second: Layer) -> tuple[Array, Array, Array]:
    """Return what the layers of a pair read, and what the second should give."""
    assert chunk.first is not None
    return chunk.first, chunk.data, second.staying(chunk.wanted)


def _gathered(
    pair: tuple[Layer, Layer], chunks: Sequence[Observed], drawn: I64
) -> tuple[Array, Array, Array]:
    """Return what a pair reads, what it should give for that, and what is added to it.

    All are ``[samples, positions, channels]``; nothing that is added has one channel of zeros.
    """
    first, second = pair
    axis = _matrix(second).output_axis

    def flat(values: Iterable[Array | None], axis: int, keep: bool = False) -> Array:
        given = [second.staying(v) if keep else v for v in values if v is not None]
        taken = channels_last(_taken(given, drawn), axis)
        return taken.astype(np.promote_types(taken.dtype, np.float32), copy=False)

    x = flat((c.first for c in chunks), _matrix(first).data_axis)
    targets = flat((c.wanted for c in chunks), axis, keep=True)
    skip = np.zeros_like(targets[:, :, :1])
    if chunks[0].skip is not None:
        skip = flat((c.skip for c in chunks), axis)
        targets += flat((c.wanted_skip for c in chunks), axis, keep=True) - skip
    return x, targets, skip


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
