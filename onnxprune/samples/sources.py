"""Sources: the kinds of samples, and the samples of a run split by use.

A kind is one file with a function that opens it, and one entry in :data:`SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from onnxprune.arrays import I64
from onnxprune.errors import CalibrationError
from onnxprune.model.model import Model, TensorSpec
from onnxprune.samples.dataset import UNSCALED, Dataset, NoSamples, Scaling, naming
from onnxprune.samples.holdout import SHARES, Holdout, Subset, chosen_splits, split
from onnxprune.samples.images import open_images
from onnxprune.samples.npz import open_arrays
from onnxprune.samples.outliers import find_outliers


@dataclass(frozen=True)
class Source:
    """A kind of samples that users have.

    Attributes:
        name: what it is, for messages: "a folder of class folders with images".
        accepts: whether a path that exists is of this kind.
        open: opens it for the inputs of a model; raises
            :class:`~onnxprune.errors.CalibrationError` if the samples do not fit them.
    """

    name: str
    accepts: Callable[[Path], bool]
    open: Callable[[Path, Sequence[TensorSpec], Scaling], Dataset]


SOURCES: list[Source] = [
    Source("a folder of class folders with images", Path.is_dir, open_images),
    Source("an .npz of arrays with y", lambda p: p.suffix.lower() == ".npz", open_arrays),
]
"""The kinds of samples; the first that accepts a path opens it."""

GROUP = "onnxprune.sources"
"""Entry points under which other packages offer a :class:`Source`."""

OUTLIER_BATCH = 64
"""Samples that are looked at once in search of outliers."""


def _source(path: Path) -> Source:
    """Return the first source that accepts a path; other packages are asked last, as it takes time.

    Raises:
        CalibrationError: naming all sources, if none does.
    """
    others: list[Source] = []
    source = next((s for s in SOURCES if s.accepts(path)), None)
    if source is None:
        others = [entry.load() for entry in entry_points(group=GROUP)]
        source = next((s for s in others if s.accepts(path)), None)
    if source is None:
        raise CalibrationError(f"neither {' nor '.join(s.name for s in [*SOURCES, *others])}")
    return source


def hold_out(
    data: str | Path | None,
    eval_data: str | Path | None,
    model: Model,
    *,
    scaling: Scaling,
    seed: int,
    batch_size: int,
) -> Holdout:
    """Open the samples of a run and split them, stratified by class and seeded.

    With ``eval_data``, that is the *report* subset, and the calibration set is split in two.
    Where ``data`` holds the splits of a data set, they are taken instead of it. Without ``data``
    all subsets are empty. Outliers are left out of all but the *report* subset.

    Args:
        data: path of the calibration samples.
        eval_data: path of the samples to evaluate on; None to take a share of ``data``.
        model: whose inputs are fed; its fixed batch size wins over ``batch_size``.
        scaling: how pixels become floats.
        seed: of the split.
        batch_size: samples that are read at once.

    Raises:
        CalibrationError: if samples cannot be used.
    """
    size = model.fixed_batch or batch_size
    if data is None:
        nothing = Subset(NoSamples(), np.empty(0, dtype=np.int64), size)
        return Holdout(nothing, nothing, nothing)
    data, eval_data, notes = chosen_splits(Path(data), eval_data)
    dataset = open_dataset(data, model.inputs, scaling)
    if eval_data is None:
        fit, select, report = split(dataset.labels, list(SHARES.values()), seed)
        held_out = Subset(dataset, report, size)
    else:
        other = open_dataset(eval_data, model.inputs, scaling)
        share = SHARES["fit"] / (SHARES["fit"] + SHARES["select"])
        fit, select = split(dataset.labels, [share, 1 - share], seed)
        label_of = None
        if dataset.names_classes and other.names_classes:
            label_of = _translation(dataset.class_names, other.class_names, eval_data)
        held_out = Subset(other, np.arange(len(other.labels)), size, label_of)
    fitted, selected = (Subset(dataset, rows, size) for rows in (fit, select))
    samples = Holdout(fitted, selected, held_out, notes, scaling)
    return samples if dataset.bounded else _without_outliers(samples)


def _without_outliers(samples: Holdout) -> Holdout:
    """Leave outliers out of what is fitted and decided on."""
    dataset, rows = samples.fit.dataset, np.union1d(samples.fit.rows, samples.select.rows)
    found, warnings = find_outliers(dataset.batches(rows, OUTLIER_BATCH), rows)
    fit, select = (
        replace(subset, rows=np.setdiff1d(subset.rows, rows[found]))
        for subset in (samples.fit, samples.select)
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


def open_dataset(path: Path, inputs: Sequence[TensorSpec], scaling: Scaling = UNSCALED) -> Dataset:
    """Open labelled samples for a model; only labels and names are read.

    Args:
        path: the file or folder.
        inputs: the inputs of the model; a fixed batch size is ignored.
        scaling: how pixels become floats.

    Raises:
        CalibrationError: if no source accepts the path, or the samples do not fit the model.
    """
    with naming(path):
        if not path.exists():
            raise CalibrationError("no such file or folder; expected calibration samples")
        data = _source(path).open(path, inputs, scaling)
        present = np.unique(data.labels)
        if len(present) < 2:
            raise CalibrationError(
                f"only one class has samples ('{data.class_names[present[0]]}'); expected at "
                "least two; add samples of other classes"
            )
        return data
