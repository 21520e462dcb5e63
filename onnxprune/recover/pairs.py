"""Layer pairs: what layers that are fitted together read and give, gathered from both models."""

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

ROWS, MACS = 64_000, 5e9
"""Rows that a pair of layers is fitted on at most, and the operations of both layers on them."""

BYTES, COPIES = 1 << 29, 8
"""Bytes that the samples of a pair may take, and how often the largest of what a pair reads and
gives is there, copies and what is in between included, besides what is unfolded."""

BLOCK = 1 << 19
"""Bytes of what a pair reads and should give that go through it at once, so that caches hold it."""


@dataclass(frozen=True)
class _Solved:
    """What the fit of a layer alone found out: moments of its inputs by group, and lambda."""

    moments: Sequence[Moments]
    damping: float


class LayerPairs:
    """The pairs among layers that are fitted one after the other.

    See :mod:`onnxprune.recover.pair_fit`. The tensors that a pair is fitted on are given for each
    chunk of samples: ``found`` in the pruned model, what the second layer reads, what is added to
    its output if that is to be made up for, and what the first layer reads; ``wanted`` in the
    original, the output of the second layer, and what is added to it.

    Args:
        model: the prepared pruned model.
        layers: its layers, in order.
        share: multiplies the number of samples.
        threads: that work at blocks of samples; 0 for as many as there are processors.
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

    def drawn(self, second: Layer, found: list[list[Array]], wanted: list[list[Array]]) -> I64:
        """Return the samples to fit the pair on that ends with a layer, ascending.

        None where it ends no pair, where the first layer could not be fitted, or where too few
        samples are left by the bounds on rows, operations and bytes.
        """
        first = self._first_of.get(second.node)
        none = np.empty(0, dtype=np.int64)
        if first is None or first.node not in self._solved:
            return none
        data = found[0][-1], found[0][0], second.staying(wanted[0][0])
        forms = _matrix(first), _matrix(second)
        if not all(f.batched(x, y) for f, x, y in zip(forms, data[:2], data[1:], strict=True)):
            return none
        positions = [f.positions(y.shape) for f, y in zip(forms, data[1:], strict=True)]
        macs = sum(p * np.prod(f.shape) for p, f in zip(positions, forms, strict=True))
        copies = COPIES + first.form.offsets + second.form.offsets
        each = copies * max(v.nbytes // len(v) for v in data)
        most = min(self._share * min(ROWS / max(positions), MACS / macs), BYTES / each)
        count = sum(len(v[0]) for v in found)
        size = int(min(count, most))
        return np.linspace(0, count - 1, size if size >= CHECK_EVERY else 0).astype(np.int64)

    def fit(
        self,
        second: Layer,
        walk: Walk,
        found: list[list[Array]],
        wanted: list[list[Array]],
        drawn: I64,
        passed: tuple[float, float],
    ) -> dict[str, Array]:
        """Return new constants of the pair that ends with a layer; none if they cannot be held.

        Args:
            second: the layer, fitted alone already.
            walk: of the pruned model.
            found: see the class.
            wanted: likewise.
            drawn: the samples to use.
            passed: what passes the rectifier behind, lowest and highest.
        """
        pair = self._first_of[second.node], second
        shapes = [v.shape for v in (found[0][-1], found[0][0], second.staying(wanted[0][0]))]
        one, two = (
            self._half(layer, walk, inside, outside)
            for layer, inside, outside in zip(pair, shapes[:2], shapes[1:], strict=True)
        )
        if not (one.usable and two.usable):
            return {}
        data = _gathered(pair, found, wanted, drawn)
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


def _gathered(
    pair: tuple[Layer, Layer], found: list[list[Array]], wanted: list[list[Array]], drawn: I64
) -> tuple[Array, Array, Array]:
    """Return what a pair reads, what it should give for that, and what is added to it."""
    first, second = pair
    axis = _matrix(second).output_axis

    def flat(values: list[Array], axis: int) -> Array:
        taken = channels_last(_taken(values, drawn), axis)
        return taken.astype(np.promote_types(taken.dtype, np.float32), copy=False)

    x = flat([v[-1] for v in found], _matrix(first).data_axis)
    targets = flat([second.staying(v[0]) for v in wanted], axis)
    skip = np.zeros_like(targets[:, :, :1])
    if len(wanted[0]) > 1:
        skip = flat([v[1] for v in found], axis)
        targets += flat([second.staying(v[1]) for v in wanted], axis) - skip
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
