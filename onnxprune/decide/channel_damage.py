"""Channel damage: the errors that remain when channels leave and the others make up for them.

They go to the criteria as evidence (see :mod:`onnxprune.decide.score`): squared errors of the
layers, from second moments, on a common scale that a few trials give
(:mod:`onnxprune.measure.divergence`). For single weights see
:mod:`onnxprune.decide.weight_damage`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, I64, Array
from onnxprune.decide.elimination import Elimination, GroupReader, eliminate, output_energy
from onnxprune.decide.second_moments import InputMoments, from_rows, input_moments, to_rows
from onnxprune.linear.layer import Layer, prepare
from onnxprune.linear.matrix_form import MatrixForm, StackForm
from onnxprune.measure.divergence import Sensitivity, TrialSamples, divergences, trial_chunks
from onnxprune.model.model import Model
from onnxprune.model.runner import Runner
from onnxprune.model.session import Feeds
from onnxprune.model.stepwise import Walk
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan
from onnxprune.structure.structure import Structure, Weight
from onnxprune.structure.subject import Subject

TRIALS = (0.25, 0.5, 0.75)
"""Shares of a group's units that are removed in its trials."""


@dataclass(frozen=True)
class Measured:
    """A model, its layers and the second moments of what they read.

    Attributes:
        model: the original, prepared (see :func:`onnxprune.linear.layer.prepare`).
        layers: its layers, in order; those without usable moments are left out.
        moments: of their inputs, by node, one for each group.
        weights: values of the weight tensors by name.
        chunks: inputs of some samples, for trials.
        output: name of the output with the class scores.
        macs: multiply-accumulates of the model for one sample.
        runner: runs the models.
    """

    model: Model
    layers: list[Layer]
    moments: Mapping[str, list[InputMoments]]
    weights: Mapping[str, Array]
    chunks: Sequence[Feeds]
    output: str
    macs: float
    runner: Runner

    def matrices(self, layer: Layer) -> list[F64]:
        """Return the weights of each group of a layer as its moments need them."""
        values = self.weights[layer.weight].astype(np.float64)
        return [to_rows(layer, m) for m in layer.form.to_matrix(values) * layer.alpha]

    def trial(self, layer: Layer, matrices: Sequence[F64]) -> dict[str, Array]:
        """Return the constants of a layer with other weights and the bias that goes with them."""
        walk = Walk(self.model, [{}])
        old = layer.form.to_matrix(self.weights[layer.weight].astype(np.float64)) * layer.alpha
        new = np.stack([from_rows(layer, m) for m in matrices])
        means = [m.mean for m in self.moments[layer.node]]
        tiled = [np.tile(m, layer.form.width // len(m)) for m in means]
        moved = np.concatenate([(a - b) @ m for a, b, m in zip(old, new, tiled, strict=True)])
        bias = walk.constant(layer.bias) + moved.reshape(layer.bias_shape)
        return {
            layer.weight: layer.form.to_tensor(new) / (layer.alpha or 1.0),
            layer.bias: bias,
        }

    def divergences(
        self, trials: Sequence[Mapping[str, Array]], progress: Callable[[int], None]
    ) -> F64:
        """Return how far each trial moves the model's outputs."""
        chunks = trial_chunks(self.chunks, len(trials), self.macs)
        samples = TrialSamples(self.output, chunks)
        return divergences(self.model, samples, trials, runner=self.runner, progress=progress)


def measure_moments(
    subject: Subject,
    chunks: Sequence[Feeds],
    *,
    output: str,
    seed: int,
    runner: Runner,
    progress: Callable[[int], None],
) -> Measured:
    """Gather the second moments of what the layers of a model read.

    Args:
        subject: the model.
        chunks: inputs of the samples.
        output: name of the output with the class scores.
        seed: of the drawn positions.
        runner: runs the models.
        progress: called with 1 after each layer.
    """
    prepared, layers = prepare(subject.folded, Cut.of(subject, PruningPlan("")))
    moments = input_moments(prepared, layers, chunks, seed=seed, runner=runner, progress=progress)
    weights, macs = subject.weights, subject.cost.macs
    usable = [la for la in layers if la.node in moments and la.weight in weights]
    return Measured(prepared, usable, moments, weights, chunks, output, macs, runner)


def unit_errors(
    structure: Structure, measured: Measured, progress: Callable[[int], None] = lambda _: None
) -> tuple[F64, list[Sensitivity]]:
    """Return the error that each unit adds where it leaves, ``float64 [units]``, and the trials.

    Units leave their group by backward elimination; the errors of a group add up to that of
    removing it. Its scale is the divergence of the outputs in trials where it is partly
    removed. Units that no layer reads have the median of the others.
    """
    by_node = {layer.node: layer for layer in measured.layers}
    everything = list(_readers(structure, measured, by_node))
    found: list[tuple[str, Elimination, list[int]]] = []
    trials: list[dict[str, Array]] = []
    for group in structure.groups:
        members = {int(u) for u in group.units}
        own = [(layer, r) for layer, r in everything if not members.isdisjoint(r.columns)]
        if not own:
            continue
        counts = sorted({max(1, int(len(members) * share)) for share in TRIALS})
        readers = [
            GroupReader(
                r.weights,
                r.covariance,
                {u: c for u, c in r.columns.items() if u in members},
                r.scale,
            )
            for _, r in own
        ]
        elimination = eliminate(sorted(members), readers, counts)
        trials += [_trial(measured, own, elimination.snapshots[count]) for count in counts]
        found.append((group.name, elimination, counts))
    moved = iter(measured.divergences(trials, progress))
    result = np.full(len(structure.units), np.nan)
    sensitivities: list[Sensitivity] = []
    for name, elimination, counts in found:
        divergence = [float(next(moved)) for _ in counts]
        left = sum(float(elimination.errors[count - 1]) for count in counts)
        scale = sum(divergence) / left if left > 0 else 0.0
        steps = np.diff(np.concatenate([[0.0], elimination.errors]))
        result[elimination.order] = np.maximum.accumulate(steps) * scale
        sensitivities.append(Sensitivity(name, tuple(counts), tuple(divergence)))
    known = np.isfinite(result)
    result[~known] = np.median(result[known]) if known.any() else 1.0
    return result, sensitivities


def _trial(
    measured: Measured, own: Sequence[tuple[Layer, GroupReader]], snapshot: Sequence[F64]
) -> dict[str, Array]:
    """Put the refitted weights of a group's readers into their layers."""
    parts: dict[str, tuple[Layer, list[F64]]] = {}
    for (layer, reader), weights in zip(own, snapshot, strict=True):
        _, matrices = parts.setdefault(layer.node, (layer, measured.matrices(layer)))
        matrices[reader.group] = weights
    constants: dict[str, Array] = {}
    for layer, matrices in parts.values():
        constants |= measured.trial(layer, matrices)
    return constants


def _readers(
    structure: Structure, measured: Measured, by_node: Mapping[str, Layer]
) -> Iterator[tuple[Layer, GroupReader]]:
    """Yield everything that reads units, with its layer."""
    for weight in structure.weights:
        layer = by_node.get(weight.node)
        if layer is None:
            continue
        matrices, columns = measured.matrices(layer), list[dict[int, I64]]()
        if isinstance(layer.form, StackForm):
            columns = _columns_of_stack(structure, layer.form, weight)
        elif weight.data_labels is not None:
            index, unit = structure.units.atoms(weight.data_labels)
            columns = _columns_of_layer(layer.form, index, unit, matrices[0].shape[1])
        if columns:
            moments = measured.moments[layer.node]
            for g, (w, m, own) in enumerate(zip(matrices, moments, columns, strict=True)):
                energy = output_energy(w, m.covariance)
                yield layer, GroupReader(w, m.covariance, own, energy if energy > 0 else 1.0, g)


def _columns_of_layer(form: MatrixForm, index: I64, unit: I64, width: int) -> list[dict[int, I64]]:
    """Return for each group of a layer the inputs that leave with each unit.

    Args:
        form: of the layer.
        index: ``int64 [n]``, channels of the tensor that it reads.
        unit: ``int64 [n]``, the units that they leave with.
        width: inputs of a group, as its moments have them.
    """
    per_group = form.width // form.offsets
    if not len(unit) or (per_group == 1 and form.groups > 1):
        return []  # depthwise: an output leaves with its only input
    offsets = np.arange(width // per_group, dtype=np.int64) * per_group
    found = [defaultdict[int, list[I64]](list) for _ in range(form.groups)]
    for i, u in zip(index.tolist(), unit.tolist(), strict=True):
        group = found[i // per_group if form.groups > 1 else 0]
        group[u].append(offsets + i % per_group)
    return [{u: np.concatenate(parts) for u, parts in group.items()} for group in found]


def _columns_of_stack(
    structure: Structure, form: StackForm, weight: Weight
) -> list[dict[int, I64]]:
    """Return the same for the matrices of a stack: they lose inputs, or leave as a whole."""
    assert weight.letters is not None
    data, own, _ = weight.letters
    read = {k: v for k, v in weight.axes.items() if own[k] != "." and own[k] in data}
    found = [defaultdict[int, list[I64]](list) for _ in range(form.groups)]
    for axis, labels in read.items():
        atoms = structure.units.atoms(labels)
        for along, group in zip(form.along(axis), found, strict=True):
            for i, u in zip(*atoms, strict=True):
                group[int(u)].append(np.flatnonzero(along == i))
    return [{u: np.unique(np.concatenate(parts)) for u, parts in group.items()} for group in found]
