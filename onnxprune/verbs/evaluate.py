"""Evaluate: the accuracy of a model on labelled samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnxprune.log import Progress, silent
from onnxprune.measure.accuracy import Accuracy, measure_accuracy
from onnxprune.measure.class_scores import class_scores
from onnxprune.model.runner import Runner
from onnxprune.run.open import _load
from onnxprune.samples.holdout import evaluated, folder_names, skip_warnings
from onnxprune.samples.sources import open_dataset


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str = "",
    threads: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Accuracy:
    """Measure the top-1 accuracy of a model on labelled samples.

    Raises:
        OnnxpruneError: if the model or the samples cannot be used.
    """
    loaded = _load(model)
    class_scores(loaded, output)
    path, notes = evaluated(Path(data))
    dataset = open_dataset(path, loaded.inputs, mean=mean, std=std)
    size = loaded.fixed_batch or batch_size
    accuracy = measure_accuracy(
        loaded,
        dataset.batches(None, size),
        output=output,
        runner=Runner(threads),
        folders=folder_names(dataset),
        progress=progress("evaluate", len(dataset.labels)),
    )
    return replace(accuracy, warnings=(*notes, *skip_warnings(dataset.skipped)))
