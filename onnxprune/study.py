"""Study: a model and its samples, with all that is measured before anything is decided."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property

from onnxprune import cost
from onnxprune.accuracy import Accuracy, class_output, measure_accuracy
from onnxprune.budget import Meter
from onnxprune.calibrate import Point, calibrate
from onnxprune.decide import Decider
from onnxprune.errors import CalibrationError
from onnxprune.graph import Model
from onnxprune.holdout import Holdout, Part
from onnxprune.log import Log
from onnxprune.recovery import sample_chunks
from onnxprune.request import Request
from onnxprune.savings import measure_savings
from onnxprune.score import CRITERIA, Scorer, weight_points
from onnxprune.selection import Measured, measure_moments
from onnxprune.session import Feeds
from onnxprune.statistics import ActivationStats
from onnxprune.subject import Subject, observe_inputs, trace_subject

TIMED_SAMPLES = 4
"""Samples of a run whose latency is measured, where the model leaves their number open."""


class Study:
    """What is known about one model; every part is measured once, when it is first needed.

    Args:
        original: the model as it was read.
        samples: its samples.
        request: what was asked for.
        log: told of times, progress and warnings.
        location: name of the file that large weights will go to; None for one file.

    Attributes:
        feeds: samples to verify on.
        subject: the traced model.
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
    ) -> None:
        self.samples, self.request, self.log = samples, request, log
        self.location = location
        self.output = class_output(original, request.output)
        with log.stage("observe"):
            self.feeds: Feeds
            self.feeds, shapes = observe_inputs(
                original, samples, seed=request.seed, threads=request.threads
            )
        with log.stage("trace"):
            self.subject: Subject = trace_subject(original, shapes, request)
        self.classes = self._count_classes()

    @cached_property
    def reported(self) -> Accuracy | None:
        """The original's accuracy on the *report* samples; None without any."""
        found = self.accuracy(self.subject.original, self.samples.report)
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
        return self.accuracy(self.subject.original, self.samples.select)

    @property
    def gated(self) -> bool:
        """Whether the accuracy on the *select* samples decides anything."""
        request = self.request
        bounded = (request.max_drop, request.min_accuracy) != (None, None)
        return bounded or (request.mode == "auto" and request.sparsity is not None)

    @property
    def bytes(self) -> int:
        """Bytes of the original's files."""
        return self.subject.cost.bytes

    @cached_property
    def stats(self) -> dict[Point, ActivationStats]:
        """Statistics of the activations on the *fit* samples, as far as they are needed."""
        criterion, subject = CRITERIA[self.request.metric], self.subject
        recovering = self.request.recover != "none"
        if not (criterion.needs_labels or criterion.needs_rms or recovering):
            return {}
        with self.log.stage("calibrate"):
            return calibrate(
                subject.folded,
                subject.shapes,
                weight_points(subject.structure),
                self.samples.fit.batches(),
                classes=self.classes,
                squares=criterion.needs_rms,
                threads=self.request.threads,
                progress=self.log.progress("calibrate", len(self.samples.fit)),
            )

    @cached_property
    def node_macs(self) -> Mapping[str, float]:
        """Multiply-accumulates of each node for one sample."""
        return cost.node_macs(self.subject.folded, self.subject.shapes)

    @cached_property
    def timing_feeds(self) -> Feeds:
        """What latency is measured on: few samples, or all of a fixed batch or made-up inputs."""
        if self.subject.original.fixed_batch or not len(self.samples.fit):
            return self.feeds
        return {name: value[:TIMED_SAMPLES] for name, value in self.feeds.items()}

    @cached_property
    def node_seconds(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Measured seconds of each node, and the part of them that leaves with its channels."""
        request = self.request
        with self.log.stage("latency"):
            return measure_savings(
                self.subject,
                self.timing_feeds,
                threads=request.threads,
                provider=request.provider,
            )

    @cached_property
    def decider(self) -> Decider:
        """What turns budgets into plans."""
        subject, request = self.subject, self.request
        stats, measured = self.stats, self._moments()
        scorer = Scorer(
            subject.structure, subject.weights, stats, metric=request.metric, seed=request.seed
        )
        seconds = self.node_seconds if request.latency is not None else None
        meter = Meter(subject.folded, subject.structure, subject.cost, self.node_macs, seconds)
        return Decider(subject, scorer, measured, meter, request)

    def aligned(self, align: int) -> Study:
        """Return the same study, everything that was measured included, with an alignment."""
        other = copy(self)
        other.request = replace(self.request, align=align)
        other.decider = self.decider.aligned(align)
        return other

    def accuracy(self, model: Model, part: Part) -> Accuracy | None:
        """Measure a model on a part of the samples; None if it is empty."""
        if not len(part):
            return None
        with self.log.stage("evaluate"):
            return measure_accuracy(
                model,
                part.batches(),
                output=self.request.output,
                threads=self.request.threads,
                progress=self.log.progress("evaluate", len(part)),
            )

    def _moments(self) -> Measured | None:
        subject = self.subject
        if not self.request.uses_errors:
            return None
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
                threads=self.request.threads,
                progress=self.log.progress("moments", len(subject.structure.weights)),
            )

    def _count_classes(self) -> int:
        """Compare the labels with the model's classes; return the number of classes."""
        samples, name = self.samples, self.output
        shape = self.subject.shapes.first.get(name, ())
        known = shape[1] if len(shape) >= 2 else 0
        if known and samples.labels_end > known:
            raise CalibrationError(
                f"label {samples.labels_end - 1} is outside the model's classes: output '{name}' "
                f"has {known}; check the class folders or y"
            )
        if known and len(samples.class_names) not in (0, known):
            self.log.warnings.append(
                f"the calibration set has {len(samples.class_names)} classes, the model's output "
                f"'{name}' has {known}: check that the order of the class folders is the model's"
            )
        return max(known, samples.labels_end)
