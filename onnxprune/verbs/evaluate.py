"""Evaluate: the accuracy of a model on labelled samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from onnxprune.log import Progress, silent
from onnxprune.measure.accuracy import Accuracy, measure_accuracy
from onnxprune.measure.class_scores import class_scores
from onnxprune.model.runner import Runner
from onnxprune.plans.request import Request
from onnxprune.plans.settings import Settings, taken
from onnxprune.run.open import open_model
from onnxprune.samples.dataset import Scaling
from onnxprune.samples.holdout import evaluated, folder_names, skip_warnings
from onnxprune.samples.sources import open_dataset


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Accuracy:
    """Measure the top-1 accuracy of a model on labelled samples.

    Args:
        model: path of the model.
        data: as for :func:`prune`.
        progress: see :data:`~onnxprune.log.Progress`.
        settings: as for :func:`prune`, those that say how the samples are read and run.

    Raises:
        OnnxpruneError: if the model or the samples cannot be used.
        TypeError: for a setting that it does not take.
    """
    asked, reading = taken("evaluate", settings, Request(max_drop=0.0))
    loaded = open_model(model)
    class_scores(loaded, asked.output)
    path, notes = evaluated(Path(data))
    dataset = open_dataset(path, loaded.inputs, Scaling.of(reading.mean, reading.std))
    accuracy = measure_accuracy(
        loaded,
        dataset.batches(None, loaded.fixed_batch or asked.batch_size),
        output=asked.output,
        runner=Runner(asked.threads),
        folders=folder_names(dataset),
        progress=progress("evaluate", len(dataset.labels)),
    )
    return replace(accuracy, warnings=(*notes, *skip_warnings(dataset.skipped)))
