"""Run: the model as given, its samples and the request, the same for all steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.arrays import Arrays
from onnxprune.errors import CalibrationError
from onnxprune.log import Log
from onnxprune.measure.accuracy import Accuracy, listed, measure_accuracy, outside
from onnxprune.measure.class_scores import class_scores
from onnxprune.measure.statistics import is_defined
from onnxprune.model import cost
from onnxprune.model.model import Model
from onnxprune.model.qoperators import joined
from onnxprune.model.runner import Runner
from onnxprune.model.session import Feeds, samples_of
from onnxprune.plans.request import Request
from onnxprune.run import cache as caching
from onnxprune.run import records
from onnxprune.run.cache import Cache
from onnxprune.run.fingerprint import Fingerprints, files_hash
from onnxprune.run.prunable import check_prunable
from onnxprune.samples.holdout import Holdout, Subset
from onnxprune.samples.inputs import observe_inputs
from onnxprune.structure.removals import Removal, find_removals
from onnxprune.structure.subject import Subject, trace_subject
from onnxprune.structure.untouched import untouched_warnings
from onnxprune.timing.latency import in_batches


class Run:
    """A model as given, its samples and the request, and what is measured of that model.

    Args:
        original: the model as it was read.
        samples: its samples.
        request: what the user asked for.
        log: told of times, progress and warnings.
        location: name of the file that large weights will go to; None for one file.
        cache: whether measurements are kept for, and taken from, other runs.

    Attributes:
        request: what the user asked for, without the F statistic where that is undefined.
        runner: runs models.
        output: name of the output with the class scores.
        feeds: inputs to verify on: samples, and other data of other sizes.
        given: the model as it was read, traced.
        classes: the number of classes; 0 without samples.
        cache: holds measurements of the model as given.

    Raises:
        OnnxpruneError: if the model cannot be traced, or the labels do not fit it.
    """

    def __init__(
        self,
        original: Model,
        samples: Holdout,
        request: Request,
        log: Log,
        location: str | None = None,
        *,
        cache: bool = False,
    ) -> None:
        self.location = location
        log.warnings += samples.warnings
        self.samples, self.request, self.log = samples, measurable(request, samples, log), log
        self.runner = Runner(request.threads, request.provider, log.progress)
        self.output = class_scores(original, request.output).name
        with log.stage("observe"):
            shapes = observe_inputs(
                original,
                samples,
                seed=request.seed,
                runner=self.runner,
                dims=dict(request.dims),
            )
        self.feeds: Sequence[Feeds] = shapes.feeds
        log.warnings += [
            f"{axis} is declared dynamic, but the model ran with one size of it only: nothing "
            "that depends on sizes was folded, and the result was not tried with other sizes of it"
            for axis in shapes.stuck
        ]
        with log.stage("trace"):
            self.given: Subject = trace_subject(
                original, shapes, exclude=request.exclude, allow_inexact=request.allow_inexact
            )
            check_prunable(self.given.structure, request)
        log.warnings += untouched_warnings(self.given.structure.untouched, self.bytes)
        self.classes = self._count_classes()
        self.fingerprints = Fingerprints()
        self.cache = self._opened() if cache and len(samples.fit) else Cache(None)

    @cached_property
    def reported(self) -> Accuracy | None:
        """The original's accuracy on the *report* samples; None without any."""
        found = self._original_accuracy(self.samples.report)
        if found and found.value - 2 * found.standard_error <= 1 / self.classes:
            self.log.warnings.append(
                f"the original model scores {100 * found.value:.1f} % on {found.samples} samples, "
                f"no better than chance for {self.classes} classes: the class order or the "
                "preprocessing (--mean, --std) is probably wrong, and so are the statistics"
            )
        return found

    @cached_property
    def selected(self) -> Accuracy | None:
        """The original's accuracy on the *select* samples; None without any."""
        return self._original_accuracy(self.samples.select)

    @property
    def gated(self) -> bool:
        """Whether the accuracy on the *select* samples decides anything."""
        request = self.request
        return request.bounded or (request.mode == "auto" and request.sparsity is not None)

    @property
    def bytes(self) -> int:
        """Bytes of the original's files."""
        return self.given.cost.bytes

    @cached_property
    def removals(self) -> list[Removal]:
        """What can leave the model as a whole."""
        given = self.given
        macs = cost.node_macs(given.folded, given.shapes)
        return find_removals(given.folded, given.shapes, given.structure, macs)

    @cached_property
    def timing_feeds(self) -> list[Feeds]:
        """What latency is measured on: ``latency_batch`` samples, and one if that is not the same.

        Where the model runs with no such number, the samples to verify on.
        """
        wanted = self.request.latency_batch
        found = in_batches(self.given.original, self.feeds[0], (wanted, 1), runner=self.runner)
        if wanted not in (1, samples_of(found[0])):
            self.log.warnings.append(
                f"latency is measured at batch {samples_of(found[0])} and not at {wanted}, with "
                "which the model does not run"
            )
        return found

    def accuracy(self, model: Model, subset: Subset) -> Accuracy | None:
        """Measure a model on a subset of the samples; None if it is empty."""
        if not len(subset):
            return None
        with self.log.stage("evaluate"):
            return measure_accuracy(
                joined(model, self.given.original),
                subset.batches(),
                output=self.request.output,
                runner=self.runner,
                progress=self.log.progress("evaluate", len(subset)),
            )

    def _original_accuracy(self, subset: Subset) -> Accuracy | None:
        """Measure the original on a subset, or remember that; None if the subset is empty."""
        if not len(subset):
            return None

        def measure() -> Arrays:
            found = self.accuracy(self.given.original, subset)
            assert found is not None
            return records.from_accuracy(found)

        def settings() -> dict[str, Any]:
            return {"subset": self.fingerprints.of(subset), "output": self.request.output}

        return records.to_accuracy(self.cache.recall("accuracy", settings, measure))

    def _opened(self) -> Cache:
        """Open the cache for what is measured of this model and these samples."""
        subject = {
            "model": files_hash(self.given.original.files),
            "scaling": astuple(self.samples.scaling),
            "threads": self.request.threads,
            "environment": caching.environment(),
        }
        return Cache(caching.folder(), subject, lambda: not self.samples.skipped)

    def _count_classes(self) -> int:
        """Compare the labels with the model's classes; return the number of classes."""
        samples, name, names = self.samples, self.output, self.samples.class_names
        folders = samples.folder_names
        known = class_scores(self.given.original, name).count(self.given.shapes)
        if known and samples.labels_end > known:
            raise CalibrationError(outside(samples.labels_end - 1, name, known, folders))
        if known and len(names) not in (0, known):
            self.log.warnings.append(
                f"the calibration set has {len(names)} classes, the model's output '{name}' has "
                f"{known}: check that the order of the class folders is the model's"
                f"{listed(folders)}"
            )
        return max(known, samples.labels_end)


def measurable(request: Request, samples: Holdout, log: Log) -> Request:
    """Return a request without F where the samples are too few for it, and warn of that."""
    unused = request.lossless or not request.criterion.needs_labels or not len(samples.fit)
    count, classes = len(samples.fit), len(np.unique(samples.fit.labels))
    if unused or is_defined(count, classes):
        return request
    metric = request.metric_without_f
    log.warnings.append(
        f"the F statistic needs at least two classes and more samples than classes, but there are "
        f"{count} samples of {classes} classes to fit on: metric {metric} is used instead of "
        f"{request.metric}; give more samples of each class"
    )
    return replace(request, metric=metric)
