"""Classes: whether the labels of the samples can be those of the model."""

from __future__ import annotations

from onnxprune.accuracy import Accuracy, class_output
from onnxprune.errors import CalibrationError
from onnxprune.holdout import Holdout
from onnxprune.log import Log
from onnxprune.request import Request
from onnxprune.subject import Subject


def count_classes(subject: Subject, samples: Holdout, request: Request, log: Log) -> int:
    """Compare the labels with the model's classes; return the number of classes."""
    name = class_output(subject.original, request.output)
    shape = subject.shapes.first.get(name, ())
    known = shape[1] if len(shape) >= 2 else 0
    if known and samples.labels_end > known:
        raise CalibrationError(
            f"label {samples.labels_end - 1} is outside the model's classes: output '{name}' "
            f"has {known}; check the class folders or y"
        )
    if known and len(samples.class_names) not in (0, known):
        log.warnings.append(
            f"the calibration set has {len(samples.class_names)} classes, the model's output "
            f"'{name}' has {known}: check that the order of the class folders is the model's"
        )
    return max(known, samples.labels_end)


def warn_chance(before: Accuracy | None, classes: int, log: Log) -> None:
    """Warn if the original model is no better than chance."""
    if before and before.value - 2 * before.standard_error <= 1 / classes:
        log.warnings.append(
            f"the original model scores {100 * before.value:.1f} % on {before.samples} samples, "
            f"no better than chance for {classes} classes: the class order or the "
            "preprocessing (--mean, --std) is probably wrong, and so are the statistics"
        )
