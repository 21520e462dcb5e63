"""Sources: open the samples of a run and split them by use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune.arrays import I64
from onnxprune.errors import CalibrationError
from onnxprune.model.model import Model, TensorSpec
from onnxprune.samples.dataset import Dataset, NoSamples, _naming
from onnxprune.samples.holdout import SHARES, Holdout, Part, _chosen_splits, split
from onnxprune.samples.images import _form, _images
from onnxprune.samples.npz import _arrays
from onnxprune.samples.outliers import find_outliers


def hold_out(
    data: str | Path | None,
    eval_data: str | Path | None,
    model: Model,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int,
    batch_size: int,
) -> Holdout:
    """Open the samples of a run and split them, stratified by class and seeded.

    With ``eval_data``, that is the *report* part, and the calibration set is split in two.
    Where ``data`` holds the splits of a data set, they are taken instead of it. Without ``data``
    all parts are empty. Outliers are left out of all but the *report* part.

    Raises:
        CalibrationError: if samples cannot be used.
    """
    size = model.fixed_batch or batch_size
    if data is None:
        nothing = Part(NoSamples(), np.empty(0, dtype=np.int64), size)
        return Holdout(nothing, nothing, nothing)
    data, eval_data, notes = _chosen_splits(Path(data), eval_data)
    dataset = open_dataset(data, model.inputs, mean=mean, std=std)
    if eval_data is None:
        fit, select, report = split(dataset.labels, list(SHARES.values()), seed)
        held_out = Part(dataset, report, size)
    else:
        other = open_dataset(eval_data, model.inputs, mean=mean, std=std)
        share = SHARES["fit"] / (SHARES["fit"] + SHARES["select"])
        fit, select = split(dataset.labels, [share, 1 - share], seed)
        label_of = None
        if data.is_dir() and eval_data.is_dir():
            label_of = _translation(dataset.class_names, other.class_names, eval_data)
        held_out = Part(other, np.arange(len(other.labels)), size, label_of)
    scaling = tuple(None if v is None else tuple(v) for v in (mean, std))
    parts = Holdout(Part(dataset, fit, size), Part(dataset, select, size), held_out, notes, scaling)
    return parts if data.is_dir() else _without_outliers(parts)  # pixels are bounded


def _without_outliers(samples: Holdout) -> Holdout:
    """Leave outliers out of what is fitted and decided on."""
    dataset, rows = samples.fit.dataset, np.union1d(samples.fit.rows, samples.select.rows)
    found, warnings = find_outliers(dataset.batches(rows, OUTLIER_BATCH), rows)
    fit, select = (
        replace(part, rows=np.setdiff1d(part.rows, rows[found]))
        for part in (samples.fit, samples.select)
    )
    return replace(samples, fit=fit, select=select, warnings=(*samples.warnings, *warnings))


def _translation(names: Sequence[str], others: Sequence[str], path: Path) -> I64 | None:
    """Give the classes of another dataset the labels that this one's names have."""
    if list(names) == list(others):
        return None
    unknown = [name for name in others if name not in names]
    if unknown:
        raise CalibrationError(
            f"{path}: class '{unknown[0]}' is not a class of the calibration set; expected "
            f"only {', '.join(names[:12])}"
        )
    return np.asarray([names.index(name) for name in others], dtype=np.int64)


OUTLIER_BATCH = 64
"""Samples that are looked at once in search of outliers."""


def open_dataset(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Open labelled samples for a model; only labels and names are read.

    Args:
        path: folder of class folders with images, or ``.npz`` file with labels in ``y``.
        inputs: the inputs of the model; a fixed batch size is ignored.
        mean: per channel, subtracted from images scaled to 0..1 (float inputs only).
        std: per channel, divides them afterwards.

    Raises:
        CalibrationError: if the samples cannot be used with this model.
    """
    with _naming(path):
        if not path.exists():
            raise CalibrationError("no such file or folder; expected calibration samples")
        if not path.is_dir() and path.suffix.lower() != ".npz":
            raise CalibrationError(
                "neither a folder nor an .npz; expected class folders with images, or arrays"
            )
        raw = not path.is_dir() or any(spec.dtype == np.uint8 for spec in inputs)
        if raw and not (mean is None and std is None):
            raise CalibrationError(
                "mean and std are for images and a float input; arrays and uint8 pixels are "
                "fed as they are; leave mean and std out"
            )
        data = _images(path, _form(inputs, mean, std)) if path.is_dir() else _arrays(path, inputs)
        present = np.unique(data.labels)
        if len(present) < 2:
            raise CalibrationError(
                f"only one class has samples ('{data.class_names[present[0]]}'); expected at "
                "least two; add samples of other classes"
            )
        return data
