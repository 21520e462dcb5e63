"""Sensitivity: how much a model's outputs change when some of its weights do, by trying it.

Errors of different layers do not matter equally. A few trials, each with other weights in one
place, give the scale: the Kullback-Leibler divergence between the class probabilities of the
original and those of the trial. It needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, Array
from onnxprune.measure.class_scores import class_scores
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, samples_of
from onnxprune.model.stepwise import Walk

WORK = 1e12
"""Multiply-accumulates that the trials of a run may take together, roughly."""

SAMPLES = (32, 2048)
"""Least and most samples of a trial."""

TEMPERATURE = 4.0
"""What scores are divided by: a confident model is saturated, and what it says of the classes that
it does not choose tells more (Hinton et al., arXiv 1503.02531, section 2)."""


def trial_chunks(chunks: Sequence[Feeds], trials: int, macs: float) -> list[Feeds]:
    """Take as many samples for trials as the work allows, spread over the chunks.

    Args:
        chunks: inputs of all samples.
        trials: number of trials.
        macs: multiply-accumulates of the model for one sample.
    """
    size = samples_of(chunks[0])
    samples = np.clip(WORK / max(trials * macs / 2, 1.0), *SAMPLES)
    count = max(1, min(len(chunks), int(samples / size)))
    chosen = np.unique(np.linspace(0, len(chunks) - 1, count).astype(np.int64))
    return [chunks[k] for k in chosen]


@dataclass(frozen=True)
class Reference:
    """What the class scores of other models are compared with.

    Attributes:
        logs: log-probabilities of each chunk, ``float64 [samples, classes]`` or with positions.
        temperature: what scores are divided by.
    """

    logs: Sequence[F64]
    temperature: float

    @classmethod
    def of(cls, scores: Sequence[Array], temperature: float = TEMPERATURE) -> Reference:
        """Return the reference that some class scores are."""
        return cls([log_probabilities(v, temperature) for v in scores], temperature)

    def divergence(self, scores: Sequence[Array]) -> float:
        """Return the mean divergence of class scores, chunk by chunk; infinite if not finite."""
        values = [
            (np.exp(a) * (a - log_probabilities(b, self.temperature))).sum(axis=1).ravel()
            for a, b in zip(self.logs, scores, strict=True)
        ]
        mean = float(np.concatenate(values).mean())
        return max(mean, 0.0) if np.isfinite(mean) else np.inf


def divergences(
    model: Model,
    output: str,
    chunks: Sequence[Feeds],
    trials: Sequence[Mapping[str, Array]],
    *,
    reference: Reference | None = None,
    runner: Runner = PLAIN,
    progress: Callable[[int], None] = lambda _: None,
) -> F64:
    """Return the mean divergence of each trial, ``float64 [trials]``; infinite if not finite.

    Args:
        model: the model.
        output: the output with the class scores.
        chunks: inputs of the samples.
        trials: for each, other values of some constants.
        reference: what they are compared with (see :func:`outputs_of`); default the model's own.
        runner: runs the models.
        progress: called with 1 after each trial.
    """
    walk, found = Walk(model, chunks, runner=runner), class_scores(model, output)
    sizes = [samples_of(feeds) for feeds in chunks]

    def scores(constants: Mapping[str, Array]) -> list[Array]:
        values = walk.peek(found.tensor, constants)
        return [found.columns(v, size) for v, size in zip(values, sizes, strict=True)]

    if reference is None:
        reference = Reference.of(scores({}))
    result = np.zeros(len(trials))
    starts = [walk.first_user(trial.keys()) for trial in trials]
    for k in np.argsort(starts, kind="stable"):
        walk.step_to(starts[k], [found.tensor])
        result[k] = reference.divergence(scores(trials[k]))
        progress(1)
    return result


def outputs_of(
    model: Model,
    output: str,
    chunks: Sequence[Feeds],
    temperature: float = TEMPERATURE,
    *,
    runner: Runner = PLAIN,
) -> Reference:
    """Return what other models are compared with: what a model gives for the samples of chunks."""
    found = class_scores(model, output)
    values = Walk(model, chunks, runner=runner).peek(found.tensor, {})
    scores = [found.columns(v, samples_of(feeds)) for v, feeds in zip(values, chunks, strict=True)]
    return Reference.of(scores, temperature)


def log_probabilities(scores: Array, temperature: float = TEMPERATURE) -> F64:
    """Return log-probabilities along axis 1 at a temperature.

    Scores that are probabilities already are taken so.
    """
    from scipy.special import log_softmax

    values = np.asarray(scores, dtype=np.float64)
    if values.ndim < 2:
        values = values[None]
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
        values = np.log(np.maximum(values, 1e-12))
    return np.asarray(log_softmax(values / temperature, axis=1))


@dataclass(frozen=True)
class Sensitivity:
    """What cutting one group does to the model's outputs, its readers refitted.

    Attributes:
        group: its name.
        removed: how many of its units leave in each trial.
        divergence: how far the outputs move then, in nats (see
            :func:`onnxprune.measure.divergence.divergences`).
    """

    group: str
    removed: tuple[int, ...]
    divergence: tuple[float, ...]
