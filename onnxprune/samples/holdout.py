"""Holdout: the samples of a run, in three subsets by what they may be used for.

*fit* feeds statistics, *select* every decision, and *report* decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.arrays import I64, Array
from onnxprune.errors import CalibrationError
from onnxprune.model.session import Feeds
from onnxprune.samples.dataset import UNSCALED, Batch, Dataset, Scaling
from onnxprune.samples.folders import find_splits

SHARES = {"fit": 0.6, "select": 0.2, "report": 0.2}

FEW = 5
"""Samples of a class below which its mean and variance say little."""


@dataclass(frozen=True)
class Subset:
    """Rows of a dataset, streamed in batches of a fixed size.

    Attributes:
        dataset: where the samples come from.
        rows: ``int64 [samples]``, their numbers in the dataset.
        batch_size: samples that are read at once.
        label_of: ``int64 [classes]``, translates the dataset's own labels; None keeps them.
    """

    dataset: Dataset
    rows: I64
    batch_size: int
    label_of: I64 | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> I64:
        """The label of every sample, ``int64 [rows]``, whether it can be read or not."""
        own = self.dataset.labels[self.rows]
        return own if self.label_of is None else self.label_of[own]

    def at_most(self, count: int) -> Subset:
        """Return at most ``count`` of the samples, spread evenly."""
        if len(self) <= count:
            return self
        chosen = np.linspace(0, len(self) - 1, max(count, 0)).astype(np.int64)
        return replace(self, rows=self.rows[chosen])

    def batches(self) -> Iterator[Batch]:
        """Stream the samples once, in batches of ``batch_size``.

        Raises:
            CalibrationError: if samples cannot be read, or hold NaN or infinity.
        """
        for batch in self.dataset.batches(self.rows, self.batch_size):
            if self.label_of is None:
                yield batch
            else:
                yield Batch(batch.feeds, self.label_of[batch.labels])

    def some_feeds(self, most: int) -> Feeds:
        """Return model inputs ``[samples, ...]`` of at most ``most`` samples, spread evenly.

        Raises:
            CalibrationError: if none of them could be read.
        """
        rows = np.unique(np.linspace(0, len(self.rows) - 1, most).astype(np.int64))
        for batch in self.dataset.batches(self.rows[rows], most):
            return batch.feeds
        raise CalibrationError(f"no sample could be read: {', '.join(self.dataset.skipped[:1])}")


def repeated(feeds: Feeds, count: int) -> dict[str, Array]:
    """Return inputs ``[samples, ...]`` cut to ``count`` samples, or repeated until there are."""
    return {name: np.resize(v, (count, *v.shape[1:])) for name, v in feeds.items()}


@dataclass(frozen=True)
class Holdout:
    """The samples of a run, in three subsets; all are empty where there are no samples.

    Attributes:
        fit: feeds statistics.
        select: decides between candidates.
        report: decides nothing: the accuracy that is shown is measured on it.
        warnings: what the user should know of the samples.
        scaling: how pixels became floats.
    """

    fit: Subset
    select: Subset
    report: Subset
    warnings: tuple[str, ...] = ()
    scaling: Scaling = UNSCALED

    @property
    def labels_end(self) -> int:
        """One more than the largest label."""
        own = int(self.fit.dataset.labels.max(initial=-1)) + 1
        if self.report.label_of is not None:
            return max(own, int(self.report.label_of.max()) + 1)
        return max(own, int(self.report.dataset.labels.max(initial=-1)) + 1)

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the calibration set's classes."""
        return self.fit.dataset.class_names

    @property
    def folder_names(self) -> Sequence[str]:
        """The names of the calibration set's class folders; none where labels are numbers."""
        return folder_names(self.fit.dataset)

    @property
    def skipped(self) -> list[str]:
        """Unreadable samples found so far."""
        return list(dict.fromkeys([*self.fit.dataset.skipped, *self.report.dataset.skipped]))

    def class_warnings(self, classes: int, rough: bool) -> list[str]:
        """Say which of the model's classes have no samples to fit on, and which have few.

        Few are said only if ``rough``: statistics of single classes are used.
        """
        if not len(self.fit):
            return []
        counts, names = np.bincount(self.fit.labels, minlength=classes), self.class_names
        result: list[str] = []
        for found, what in (
            (counts == 0, "no samples to fit on; what only they need may have left: add samples"),
            (
                (counts > 0) & (counts < FEW) & rough,
                f"fewer than {FEW} samples to fit on; their rough statistics were used: "
                "add samples",
            ),
        ):
            if found.any():
                k = int(found.argmax())
                first = f"the first '{names[k] if k < len(names) else k}'"
                shown = f"{first} with {counts[k]}" if counts[k] else first
                number = np.count_nonzero(found)
                result.append(f"{number} of {classes} classes, {shown}, have {what}")
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return sample counts for the report."""
        return {
            "samples": {name: len(getattr(self, name)) for name in SHARES},
            "classes": len(self.class_names),
            "skipped": self.skipped,
        }


def chosen_splits(
    data: Path, eval_data: str | Path | None
) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the paths to calibrate and to evaluate on, and what the user should know of them."""
    found, notes = find_splits(data), []
    if found:
        notes.append(found.note(evaluates=eval_data is None))
        data, eval_data = found.fit, found.report if eval_data is None else eval_data
    if eval_data is None:
        return data, None, tuple(notes)
    path, note = evaluated(Path(eval_data))
    return data, path, (*notes, *note)


def evaluated(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return which folder to evaluate on, where one holds the splits of a data set; and say so."""
    found = find_splits(path)
    if found is None:
        return path, ()
    split = found.report or found.fit
    return split, (f"{path} holds splits of a data set, not classes: '{split.name}' is used",)


def folder_names(dataset: Dataset) -> Sequence[str]:
    """Return the names of class folders, by label; none where labels are numbers."""
    return dataset.class_names if dataset.names_classes else ()


def skip_warnings(skipped: Sequence[str]) -> list[str]:
    """Say how many samples could not be read, and name the first."""
    if not skipped:
        return []
    return [f"{len(skipped)} images could not be read and were skipped, the first: {skipped[0]}"]


def split(labels: I64, shares: Sequence[float], seed: int) -> list[I64]:
    """Divide samples ``int64 [n]`` at random into parts, every class by the same shares.

    What of a class cannot be divided evenly goes where it is missing most, over all classes: so
    the parts have the sizes that were asked for, however small the classes are. Of each class
    the first part gets a sample before any other does, unless so many classes have so few
    samples that the others would get less than half of theirs.

    Returns:
        Ascending ``int64`` sample numbers for each (positive, relative) share: disjoint, and
        covering all.

    Raises:
        ValueError: if a share is not positive.
    """
    if not shares or min(shares) <= 0:
        raise ValueError(f"shares must be positive, got {list(shares)}")
    rng, ratios = np.random.default_rng(seed), np.array(shares) / math.fsum(shares)
    part_of = np.full(len(labels), -1, dtype=np.int64)
    present = np.unique(labels)
    first = len(present) <= (1 + ratios[0]) / 2 * len(labels)
    left: list[I64] = []
    for label in present:
        members = rng.permutation(np.flatnonzero(labels == label))
        sizes = np.floor(len(members) * ratios + 1e-9).astype(np.int64)
        sizes[0] = max(sizes[0], int(first))
        whole = int(sizes.sum())
        part_of[members[:whole]] = np.repeat(np.arange(len(ratios)), sizes)
        left.append(members[whole:])
    missing = ratios * len(labels) - np.bincount(part_of[part_of >= 0], minlength=len(ratios))
    for rows in left:
        chosen = np.argsort(-missing, kind="stable")[: len(rows)]
        part_of[rows] = chosen
        missing[chosen] -= 1
    if len(labels) >= len(ratios):
        _fill(part_of, labels, len(ratios), keep=first)
    return [np.flatnonzero(part_of == k) for k in range(len(ratios))]


def _fill(part_of: I64, labels: I64, parts: int, *, keep: bool) -> None:
    """Let no part be empty; if ``keep``, only as far as no class leaves the largest for that."""
    for part in np.setdiff1d(np.arange(parts), part_of):
        giver = np.flatnonzero(part_of == np.bincount(part_of).argmax())
        kinds, counts = np.unique(labels[giver], return_counts=True)
        if counts.max() > 1 or not keep:
            part_of[giver[labels[giver] == kinds[counts.argmax()]][-1]] = part
