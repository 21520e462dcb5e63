"""Agreement: how often a pruned model chooses the class that its original chooses.

It needs no labels. A result that lost a tenth of it, or of the accuracy, is warned about whatever
was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import Array
from onnxprune.measure.accuracy import Accuracy
from onnxprune.measure.class_scores import class_scores
from onnxprune.model.model import Model
from onnxprune.model.session import Feeds, samples_of
from onnxprune.run.execute import Outcome
from onnxprune.run.gates import drop_of
from onnxprune.run.study import Study

COLLAPSE = 0.1
"""The share of the accuracy, or of the samples, that is too much to lose without a word."""

SAMPLES, DRAWS = 512, 16
"""Samples to compare at most, and runs on made-up inputs where there are no samples."""


@dataclass(frozen=True)
class Agreement:
    """The share of the samples for which two models choose the same class.

    Attributes:
        value: that share.
        samples: how many there were.
        made_up: whether they were drawn for want of others.
    """

    value: float
    samples: int
    made_up: bool


def agreement(study: Study, model: Model) -> Agreement | None:
    """Compare what a model chooses with what the original does; None if it gives no classes."""
    original = study.run.given.original
    found = class_scores(original, study.run.output)
    if not found.count(study.run.given.shapes):
        return None
    sessions = [study.run.runner.session(m.proto) for m in (original, model)]
    same: list[bool] = []
    with study.run.log.stage("evaluate"):
        for feeds, rows in _inputs(study):
            chosen = []
            for session in sessions:
                (raw,) = session.run_rows(feeds, rows, original.fixed_batch, [found.name])
                chosen.append(found.read(raw, rows).argmax(axis=1))
            same += list(chosen[0] == chosen[1])
    if not same:
        return None
    return Agreement(float(np.mean(same)), len(same), not len(study.run.samples.fit))


def collapse(outcome: Outcome, before: Accuracy | None, after: Accuracy | None) -> str:
    """Return a warning if a result lost a tenth of its accuracy or agreement; empty if not.

    Args:
        outcome: the result.
        before: the accuracy of the original on the *report* samples, if there is any.
        after: that of the result.
    """
    study, drop = outcome.study, drop_of(outcome.study, outcome.selected)
    advice = "ask for less, give more samples, or set a bound with --max-drop"
    if before and after and before.value - after.value > COLLAPSE:
        return (
            f"the accuracy collapsed from {before.value:.4f} to {after.value:.4f} on "
            f"{after.samples} samples; {advice}"
        )
    if drop is not None and drop.value > COLLAPSE:
        return (
            f"the accuracy collapsed: {drop.value:.4f} ± {drop.standard_error:.4f} are lost on the "
            f"{drop.samples} samples that decide; {advice}"
        )
    model = outcome.model
    found = None if model is study.run.given.original else agreement(study, model)
    if found is None or 1 - found.value <= COLLAPSE:
        return ""
    which = "made-up inputs" if found.made_up else "samples"
    return (
        f"the result is far from the original: it chooses another class for "
        f"{100 * (1 - found.value):.1f} % of {found.samples} {which}; {advice}"
    )


def _inputs(study: Study) -> Iterator[tuple[Feeds, int]]:
    """Yield inputs and how many samples each holds, of those that decide least."""
    samples = study.run.samples
    subset = next((p for p in (samples.report, samples.select, samples.fit) if len(p)), None)
    if subset is not None:
        for batch in subset.at_most(SAMPLES).batches():
            yield batch.feeds, len(batch)
        return
    rng = np.random.default_rng(study.run.request.seed)
    for _ in range(DRAWS):
        yield (
            {n: _drawn(v, rng) for n, v in study.run.feeds[0].items()},
            samples_of(study.run.feeds[0]),
        )


def _drawn(values: Array, rng: np.random.Generator) -> Array:
    """Return other values of the same kind: normal floats, the same integers in another order."""
    if np.issubdtype(values.dtype, np.floating):
        return np.asarray(rng.standard_normal(values.shape), dtype=values.dtype)
    return rng.permutation(values.ravel()).reshape(values.shape)
