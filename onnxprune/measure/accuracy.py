"""Accuracy and loss of a model on labelled samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from onnxprune.arrays import F64, I64, Array, Bool
from onnxprune.errors import CalibrationError
from onnxprune.measure.class_scores import class_scores, log_probabilities
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.samples.dataset import Batch

SHARPNESS = (-6.0, 6.0)
"""Logarithms of the least and the most that a mean margin may be worth, in log odds."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy, as a fraction.

    Attributes:
        value: correct / samples.
        standard_error: ``sqrt(value (1 - value) / samples)``.
        loss: mean cross-entropy in nats.
        samples: number of samples.
        per_class: accuracy of each class, NaN where it has no samples, ``float64 [K]``.
        warnings: what the user should know about the samples.
        hits: whether each sample is right, ``bool [samples]``.
        margins: by how much the log probability of each sample's class is above the best of the
            others, ``float64 [samples]``.
    """

    value: float
    standard_error: float
    loss: float
    samples: int
    per_class: tuple[float, ...]
    warnings: tuple[str, ...] = ()
    hits: Bool = field(default_factory=lambda: np.zeros(0, dtype=np.bool_), compare=False)
    margins: F64 = field(default_factory=lambda: np.zeros(0), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the single samples."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}


@dataclass(frozen=True)
class Drop:
    """How much accuracy one model has less than another on the same samples, as a fraction.

    Attributes:
        value: the difference; negative where it gained.
        standard_error: of the difference: only samples on which the two differ count.
        samples: number of samples.
    """

    value: float
    standard_error: float
    samples: int


def drop_between(before: Accuracy, after: Accuracy) -> Drop:
    """Return how much accuracy ``after`` has less than ``before``, as a fraction of the samples.

    Both have to be of the same samples, in the same order.
    """
    return _drop(before.hits.astype(np.float64) - after.hits)


def expected_drop(original: Accuracy, before: Accuracy, after: Accuracy) -> Drop:
    """Estimate how much accuracy one model has less than another, from the same samples.

    A sample is not counted as right or wrong, but as right with a probability: the logistic
    function of its margin, sharpened as makes the margins of the original most likely
    (temperature scaling: Guo et al., arXiv 1706.04599, section 4.2, on margins). A sample that
    is hardly wrong any more then weighs as much as one that is hardly right. That differs much
    less from one set of samples to another than the difference that is counted.

    Args:
        original: tells how sure a margin is; on any samples.
        before: of one model.
        after: of the other.
    """
    from scipy.special import expit

    sharpness = _sharpness(original.margins)
    return _drop(expit(sharpness * before.margins) - expit(sharpness * after.margins))


def _drop(lost: F64) -> Drop:
    return Drop(float(lost.mean()), float(lost.std() / np.sqrt(len(lost))), len(lost))


def _sharpness(margins: F64) -> float:
    """Return what margins are multiplied by to be the log odds of being right."""
    from scipy.optimize import minimize_scalar

    scale = max(float(np.abs(margins).mean()), 1e-30)

    def surprise(log: float) -> float:
        return float(np.logaddexp(0.0, -np.exp(log) / scale * margins).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=SHARPNESS, method="bounded").x) / scale)


def measure_accuracy(
    model: Model,
    batches: Iterable[Batch],
    *,
    output: str = "",
    runner: Runner = PLAIN,
    folders: Sequence[str] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Accuracy:
    """Measure top-1 accuracy and cross-entropy.

    Args:
        model: a classifier.
        batches: labelled samples, their labels below the number of classes.
        output: name of the output that holds the class scores (default: the first that can).
        runner: runs the models.
        folders: names of the class folders, by label, for messages.
        progress: called with the number of samples done after each batch.

    Raises:
        ModelError: if the output does not hold one score per class, or the model cannot be run.
        CalibrationError: if there are no samples, if a label is outside the model's classes, or
            if scores are NaN or infinite.
    """
    session = runner.session(model.proto)
    found = class_scores(model, output)
    name = found.name
    losses: list[F64] = []
    hits: list[Array] = []
    margins: list[F64] = []
    labels: list[I64] = []
    for batch in batches:
        raw = session.run_rows(batch.feeds, len(batch), model.fixed_batch, [name])[0]
        scores = found.read(raw, len(batch))
        _check(scores, batch.labels, name, folders)
        logs = log_probabilities(scores)
        losses.append(-_of_labels(logs, batch.labels))
        margins.append(_margins(logs, batch.labels))
        hits.append(scores.argmax(axis=1) == batch.labels)
        labels.append(batch.labels)
        progress(len(batch))
    if not hits:
        raise CalibrationError("there are no samples to evaluate on")
    hit, label = np.concatenate(hits), np.concatenate(labels)
    value, count = float(hit.mean()), len(hit)
    return Accuracy(
        value=value,
        standard_error=float(np.sqrt(value * (1 - value) / count)),
        loss=float(np.concatenate(losses).mean()),
        samples=count,
        per_class=tuple(_per_class(hit, label, scores.shape[1]).tolist()),
        hits=hit,
        margins=np.concatenate(margins),
    )


def _per_class(hit: Bool, labels: I64, classes: int) -> F64:
    """Return the share of hits of each class, NaN where it has no samples."""
    right, count = (np.bincount(labels, w, classes) for w in (hit, None))
    with np.errstate(invalid="ignore"):
        result: F64 = right / count
    return result


def _check(scores: F64, labels: I64, name: str, folders: Sequence[str]) -> None:
    if not np.isfinite(scores).all():
        raise CalibrationError(
            f"output '{name}' is NaN or infinite on the samples; check the preprocessing "
            "and the model"
        )
    if labels.max() >= scores.shape[1]:
        raise CalibrationError(outside(int(labels.max()), name, scores.shape[1], folders))


def outside(label: int, output: str, classes: int, folders: Sequence[str] = ()) -> str:
    """Say that a label is not one of the model's classes, and which folder it comes from."""
    where = f" (folder '{folders[label]}')" if label < len(folders) else ""
    return (
        f"label {label}{where} is outside the model's classes: output '{output}' has {classes}; "
        f"check the class folders or y{listed(folders)}"
    )


def listed(folders: Sequence[str], most: int = 10) -> str:
    """Return which label each class folder has, for the end of a message; nothing without any."""
    shown = [f"'{name}' is {k}" for k, name in enumerate(folders[:most])]
    more = ["..."] if len(folders) > most else []
    return f": {', '.join(shown + more)}" if folders else ""


def _of_labels(logs: F64, labels: I64) -> F64:
    result: F64 = logs[np.arange(len(labels)), labels]
    return result


def _margins(logs: F64, labels: I64) -> F64:
    """Return how far the class of each sample is above the best of the others."""
    others = logs.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    best = others.max(axis=1)
    return _of_labels(logs, labels) - np.where(np.isfinite(best), best, 0.0)
