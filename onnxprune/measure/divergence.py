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
from onnxprune.measure.class_scores import ClassScores, class_scores, log_probabilities
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


@dataclass(frozen=True)
class TrialSamples:
    """The samples that trials are compared on, and how their class scores are read.

    Attributes:
        output: name of the output with the class scores.
        chunks: inputs ``[samples, ...]`` of the samples by name, in chunks that are run at once.
        temperature: what scores are divided by before they become probabilities.
    """

    output: str
    chunks: Sequence[Feeds]
    temperature: float = TEMPERATURE

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each chunk."""
        return [samples_of(feeds) for feeds in self.chunks]


def trial_chunks(chunks: Sequence[Feeds], trials: int, macs: float) -> list[Feeds]:
    """Take as many chunks for trials as :data:`WORK` allows, spread evenly; at least one.

    Args:
        chunks: inputs ``[samples, ...]`` of all samples by name, the first chunk the largest.
        trials: number of trials.
        macs: multiply-accumulates of the model for one sample.
    """
    size = samples_of(chunks[0])
    samples = np.clip(WORK / max(trials * macs / 2, 1.0), *SAMPLES)
    count = max(1, min(len(chunks), int(samples / size)))
    chosen = np.unique(np.linspace(0, len(chunks) - 1, count).astype(np.int64))
    return [chunks[k] for k in chosen]


def divergences(
    model: Model,
    samples: TrialSamples,
    trials: Sequence[Mapping[str, Array]],
    *,
    reference: Sequence[F64] | None = None,
    runner: Runner = PLAIN,
    progress: Callable[[int], None] = lambda _: None,
) -> F64:
    """Measure how far each trial moves the class probabilities of a model.

    Args:
        model: the model.
        samples: what the trials are compared on.
        trials: for each, other values of some constants by name.
        reference: the log-probabilities that they are compared with, a ``float64 [samples,
            classes]`` for each chunk (see :func:`reference_of`); default the model's own.
        runner: runs the models.
        progress: called with 1 after each trial.

    Returns:
        ``float64 [trials]``, mean Kullback-Leibler divergences in nats; infinite where the
        scores of a trial are not finite.

    Raises:
        ModelError: if the model has no such output, or cannot be run.
    """
    walk, found = Walk(model, samples.chunks, runner=runner), class_scores(model, samples.output)
    if reference is None:
        reference = _log_probabilities(walk, found, samples, {})
    result = np.zeros(len(trials))
    starts = [walk.first_user(trial.keys()) for trial in trials]
    for k in np.argsort(starts, kind="stable"):
        walk.step_to(starts[k], [found.tensor])
        result[k] = divergence(reference, _log_probabilities(walk, found, samples, trials[k]))
        progress(1)
    return result


def divergence(reference: Sequence[F64], trial: Sequence[F64]) -> float:
    """Return the mean divergence of one model's log-probabilities from another's, in nats.

    Args:
        reference: a ``float64 [samples, classes]`` for each chunk.
        trial: the same of the model that is compared with it.

    Returns:
        The mean over all samples of all chunks, at least 0; infinite if it is not finite.
    """
    values = [
        (np.exp(a) * (a - b)).sum(axis=1).ravel() for a, b in zip(reference, trial, strict=True)
    ]
    mean = float(np.concatenate(values).mean())
    return max(mean, 0.0) if np.isfinite(mean) else np.inf


def reference_of(model: Model, samples: TrialSamples, *, runner: Runner = PLAIN) -> list[F64]:
    """Return a model's log-probabilities, ``float64 [samples, classes]`` for each chunk.

    Raises:
        ModelError: if the model has no such output, or cannot be run.
    """
    walk = Walk(model, samples.chunks, runner=runner)
    return _log_probabilities(walk, class_scores(model, samples.output), samples, {})


def _log_probabilities(
    walk: Walk, found: ClassScores, samples: TrialSamples, constants: Mapping[str, Array]
) -> list[F64]:
    """Return the log-probabilities of each chunk where some constants have other values."""
    values = walk.peek(found.tensor, constants)
    return [
        log_probabilities(found.columns(v, size), samples.temperature)
        for v, size in zip(values, samples.sizes, strict=True)
    ]


@dataclass(frozen=True)
class Sensitivity:
    """What cutting one group does to the model's outputs, its readers refitted.

    Attributes:
        group: its name.
        removed: how many of its units leave in each trial.
        divergence: how far the class probabilities move then, in nats (see :func:`divergences`).
    """

    group: str
    removed: tuple[int, ...]
    divergence: tuple[float, ...]
