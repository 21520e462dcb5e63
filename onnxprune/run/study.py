"""Study: a model and its samples, with all that is measured before anything is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.arrays import Arrays
from onnxprune.decide.channel_damage import Measured, measure_moments
from onnxprune.decide.damage import ErrorsLeft
from onnxprune.decide.decider import Decider
from onnxprune.decide.latency_savings import measure_savings
from onnxprune.decide.meter import Meter
from onnxprune.decide.score import Scorer, weight_points
from onnxprune.errors import CalibrationError
from onnxprune.linear.layer import has_layers
from onnxprune.log import Log
from onnxprune.measure.accuracy import Accuracy, listed, measure_accuracy, outside
from onnxprune.measure.calibrate import Point, calibrate
from onnxprune.measure.class_scores import class_scores
from onnxprune.measure.entropy import Activity, activities, watch
from onnxprune.measure.statistics import ActivationStats, is_defined
from onnxprune.model import cost
from onnxprune.model.model import Model
from onnxprune.model.observe import observe
from onnxprune.model.qoperators import joined
from onnxprune.model.runner import Runner
from onnxprune.model.session import Feeds
from onnxprune.plans.request import Request
from onnxprune.rewrite.verify import Verification
from onnxprune.run import cache as caching
from onnxprune.run import records
from onnxprune.run.cache import Cache
from onnxprune.run.fingerprint import Fingerprints, files_hash
from onnxprune.run.prunable import check_prunable
from onnxprune.samples.chunks import sample_chunks
from onnxprune.samples.holdout import Holdout, Part
from onnxprune.samples.inputs import observe_inputs
from onnxprune.structure.rectifiers import find_rectifiers
from onnxprune.structure.removals import Removal, find_removals
from onnxprune.structure.subject import Subject, trace_subject
from onnxprune.structure.untouched import untouched_warnings
from onnxprune.timing.latency import in_batches, samples_of


@dataclass(frozen=True)
class Shortening:
    """Whole parts that left a model.

    Attributes:
        names: of the removals, in the order in which they left.
        verification: the proof of the rewrite.
        changed: tensors that are not what they were, to be made up for; none once that is done.
    """

    names: tuple[str, ...]
    verification: Verification
    changed: frozenset[str]


class Study:
    """What is known about one model; every part is measured once, when it is first needed.

    Args:
        original: the model as it was read.
        samples: its samples.
        request: what was asked for.
        log: told of times, progress and warnings.
        location: name of the file that large weights will go to; None for one file.
        cache: whether measurements are kept for, and taken from, other runs.

    Attributes:
        feeds: inputs to verify on: samples, and other data of other sizes.
        given: the model as it was read, traced.
        align: preferred divisor of the channels that stay, in whatever is decided or cleaned up:
            that of the request, unless a result was repaired; None for an automatic choice.
        cleans: whether what computes nothing is taken out of results.
        subject: the model that channels and weights are chosen from, traced: the same, or what
            is left of it once whole parts are gone.
        shortening: what is gone, and how; None if nothing is.
        classes: the number of classes; 0 without samples.

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
        self.location, self.align, self.cleans = location, request.align, True
        log.warnings += samples.warnings
        self.samples, self.request, self.log = samples, _measurable(request, samples, log), log
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
        self.subject = self.given
        self.shortening: Shortening | None = None
        self.classes = self._count_classes()
        self._fingerprints = Fingerprints()
        self._cache = self._opened() if cache and len(samples.fit) else Cache(None)

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

    @property
    def changed(self) -> frozenset[str]:
        """Tensors of what is left that are not what they were in the model as given."""
        return self.shortening.changed if self.shortening else frozenset()

    @property
    def _seen(self) -> Subject:
        """The model that is measured: as given, until what is left of it is fitted."""
        return self.given if self.changed else self.subject

    @cached_property
    def removals(self) -> list[Removal]:
        """What can leave the model as a whole."""
        given = self.given
        macs = cost.node_macs(given.folded, given.shapes)
        return find_removals(given.folded, given.shapes, given.structure, macs)

    @property
    def stats(self) -> dict[Point, ActivationStats]:
        """Statistics of the activations on the *fit* samples, as far as they are needed."""
        return self._calibrated[0]

    @property
    def rectifiers(self) -> list[Activity] | None:
        """What the rectifiers do on the *fit* samples; None where nothing is calibrated."""
        return self._calibrated[1]

    @cached_property
    def _calibrated(self) -> tuple[dict[Point, ActivationStats], list[Activity] | None]:
        request, criterion, subject = self.request, self.request.criterion, self._seen
        needed = criterion.needs_labels or criterion.needs_rms or request.recover != "none"
        needed = needed or request.mode == "depth"
        if not (request.empirical if request.lossless else needed):
            return {}, None
        self.log.warnings += self.samples.class_warnings(self.classes, criterion.needs_labels)
        rectifiers = find_rectifiers(subject.folded, subject.shapes, subject.structure)
        model, shapes, states = watch(subject.folded, subject.shapes, rectifiers)
        points = states if request.lossless else [*weight_points(subject.structure), *states]
        squares = criterion.needs_rms and not request.lossless

        def measure() -> Arrays:
            with self.log.stage("calibrate"):
                found = calibrate(
                    model,
                    shapes,
                    points,
                    self.samples.fit.batches,
                    classes=len(np.unique(self.samples.fit.labels)),
                    squares=squares,
                    runner=self.runner,
                    progress=self.log.progress("calibrate", len(self.samples.fit)),
                )
            return records.from_stats(found, points)

        def settings() -> dict[str, Any]:
            return self._fitting() | {
                "squares": squares,
                "points": len(points),
            }

        arrays = self._cache.recall("activations", settings, measure)
        stats = records.to_stats(arrays, points)
        return stats, activities(rectifiers, stats)

    @cached_property
    def node_macs(self) -> Mapping[str, float]:
        """Multiply-accumulates of each node for one sample."""
        return cost.node_macs(self.subject.folded, self.subject.shapes)

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

    @cached_property
    def node_seconds(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Measured seconds of each node, and the part of them that leaves with its channels."""
        with self.log.stage("latency"):
            return measure_savings(self.subject, self.timing_feeds[0], runner=self.runner)

    @cached_property
    def decider(self) -> Decider:
        """What turns budgets into plans."""
        subject, request = self.subject, self.request
        metric = "magnitude" if request.mode == "depth" else request.metric
        scorer = Scorer(
            subject.structure, subject.weights, self.stats, metric=metric, seed=request.seed
        )
        errors = None
        if request.uses_errors and has_layers(subject.structure):
            errors = ErrorsLeft(subject, lambda: self._moments, self._recall_errors)
        seconds = self.node_seconds if request.latency is not None else None
        meter = Meter(
            subject.folded,
            subject.structure,
            self.given.cost,
            subject.cost,
            self.node_macs,
            seconds,
        )
        return Decider(subject, scorer, errors, meter, request, self.align)

    def shortened(self, model: Model, shortening: Shortening | None) -> Study:
        """Return a study of the same request and samples about what is left of the model.

        Until that is fitted, what was measured of the activations of the whole model serves it.

        Args:
            model: what is left.
            shortening: what is gone; None if it only has other weights.
        """
        other = copy(self)
        other.shortening = shortening
        stale = {"node_macs", "node_seconds", "decider"}
        if not other.changed:
            stale |= {"_calibrated", "_moments"}
            other._cache = Cache(None)  # what was measured of other models is of no use
        for measured in stale:
            other.__dict__.pop(measured, None)
        with self.log.stage("trace"):
            shapes = observe(model, self.feeds[0], runner=self.runner)
            other.subject = trace_subject(  # of which nothing may be left
                model,
                shapes,
                exclude=self.request.exclude,
                allow_inexact=self.request.allow_inexact,
            )
        return other

    def aligned(self, align: int) -> Study:
        """Return the same study, with all that was measured, that prefers an alignment."""
        other = copy(self)
        other.align = align
        if "decider" in self.__dict__:
            other.decider = self.decider.aligned(align)
        return other

    def uncleaned(self) -> Study:
        """Return the same study, whose results keep what computes nothing."""
        other = copy(self)
        other.cleans = False
        return other

    def accuracy(self, model: Model, part: Part) -> Accuracy | None:
        """Measure a model on a part of the samples; None if it is empty."""
        if not len(part):
            return None
        with self.log.stage("evaluate"):
            return measure_accuracy(
                joined(model, self.given.original),
                part.batches(),
                output=self.request.output,
                runner=self.runner,
                progress=self.log.progress("evaluate", len(part)),
            )

    def _original_accuracy(self, part: Part) -> Accuracy | None:
        """Measure the original on a part of the samples, or remember that; None if it is empty."""
        if not len(part):
            return None

        def measure() -> Arrays:
            found = self.accuracy(self.given.original, part)
            assert found is not None
            return records.from_accuracy(found)

        def settings() -> dict[str, Any]:
            return {"part": self._fingerprints.of(part), "output": self.request.output}

        return records.to_accuracy(self._cache.recall("accuracy", settings, measure))

    def _opened(self) -> Cache:
        """Open the cache for what is measured of this model and these samples."""
        subject = {
            "model": files_hash(self.given.original.files),
            "scaling": self.samples.scaling,
            "threads": self.request.threads,
            "environment": caching.environment(),
        }
        return Cache(caching.folder(), subject, lambda: not self.samples.skipped)

    def _fitting(self) -> dict[str, Any]:
        """Return what measurements on the *fit* samples depend on besides the cache's subject."""
        request = self.request
        return {
            "fit": self._fingerprints.of(self.samples.fit),
            "exclude": request.exclude,
            "allow_inexact": request.allow_inexact,
            "output": self.output,
            "seed": request.seed,
        }

    def _recall_errors(self, what: str, measure: Callable[[], Arrays]) -> Arrays:
        """Remember an error that removals leave, or measure it."""
        return self._cache.recall(
            what, lambda: self._fitting() | {"without": sorted(self.changed)}, measure
        )

    @cached_property
    def _moments(self) -> Measured:
        subject = self._seen
        with self.log.stage("moments"):
            return measure_moments(
                subject.folded,
                subject.structure,
                subject.shapes,
                subject.weights,
                sample_chunks(subject.folded, subject.shapes, self.samples.fit),
                output=self.output,
                macs=subject.cost.macs,
                seed=self.request.seed,
                runner=self.runner,
                progress=self.log.progress("moments", len(subject.structure.weights)),
            )

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


def _measurable(request: Request, samples: Holdout, log: Log) -> Request:
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
