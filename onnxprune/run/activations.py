"""Activations: measurements of one model on the *fit* samples, made when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.arrays import Arrays
from onnxprune.decide.channel_damage import Measured, measure_moments
from onnxprune.decide.score import weight_points
from onnxprune.measure.calibrate import calibrate
from onnxprune.measure.entropy import Activity, activities, watch
from onnxprune.measure.statistics import ActivationStats
from onnxprune.recover.recoveries import needs_stats
from onnxprune.run import records
from onnxprune.run.cache import Cache
from onnxprune.run.run import Run
from onnxprune.samples.chunks import sample_chunks
from onnxprune.samples.dataset import Batch
from onnxprune.samples.holdout import Subset
from onnxprune.structure.rectifiers import find_rectifiers
from onnxprune.structure.structure import Point
from onnxprune.structure.subject import Subject


class Activations:
    """Statistics, rectifiers and second moments of one model.

    Args:
        run: its samples and request.
        subject: the model, traced.
        cache: holds measurements of this model from other runs.
    """

    def __init__(self, run: Run, subject: Subject, cache: Cache) -> None:
        self._run, self._subject, self._cache = run, subject, cache

    @property
    def stats(self) -> dict[Point, ActivationStats]:
        """Statistics of the activations, as far as the request needs them."""
        return self._calibrated[0]

    @property
    def rectifiers(self) -> list[Activity] | None:
        """What the rectifiers do; None where the request needs no statistics."""
        return self._calibrated[1]

    @cached_property
    def moments(self) -> Measured:
        """Second moments of what the layers read. They are large, so no cache keeps them."""
        run, subject = self._run, self._subject
        with run.log.stage("moments"):
            return measure_moments(
                subject,
                sample_chunks(subject.folded, subject.shapes, run.samples.fit),
                output=run.output,
                seed=run.request.seed,
                runner=run.runner,
                progress=run.log.progress("moments", len(subject.structure.weights)),
            )

    def recall(self, what: str, settings: dict[str, Any], measure: Callable[[], Arrays]) -> Arrays:
        """Return a measurement of the activations from the cache, or make it.

        Args:
            what: the name of the measurement.
            settings: all it depends on beside the model, the *fit* samples and how it is traced.
            measure: makes it.
        """
        request = self._run.request

        def everything() -> dict[str, Any]:
            return settings | {
                "fit": self._run.fingerprints.of(self._run.samples.fit),
                "exclude": request.exclude,
                "allow_inexact": request.allow_inexact,
                "output": self._run.output,
                "seed": request.seed,
            }

        return self._cache.recall(what, everything, measure)

    @cached_property
    def _calibrated(self) -> tuple[dict[Point, ActivationStats], list[Activity] | None]:
        run, subject = self._run, self._subject
        request, criterion = run.request, run.request.criterion
        needed = criterion.needs_labels or criterion.needs_rms or needs_stats(request.recovery)
        needed = needed or request.mode == "depth"
        if not (request.empirical if request.lossless else needed):
            return {}, None
        run.log.warnings += run.samples.class_warnings(run.classes, criterion.needs_labels)
        rectifiers = find_rectifiers(subject.folded, subject.shapes, subject.structure)
        watched = watch(subject.folded, subject.shapes, rectifiers)
        if not request.lossless:
            points = [*weight_points(subject.structure), *watched.points]
            watched = replace(watched, points=points)
        squares = criterion.needs_rms and not request.lossless

        def measure() -> Arrays:
            with run.log.stage("calibrate"):
                found = calibrate(
                    watched,
                    _told(run.samples.fit, run.log.progress("calibrate", len(run.samples.fit))),
                    classes=len(np.unique(run.samples.fit.labels)),
                    squares=squares,
                    runner=run.runner,
                )
            return records.from_stats(found, watched.points)

        settings = {"squares": squares, "points": len(watched.points)}
        stats = records.to_stats(self.recall("activations", settings, measure), watched.points)
        return stats, activities(rectifiers, stats)


def _told(subset: Subset, advance: Callable[[int], None]) -> Callable[[], Iterator[Batch]]:
    """Return what streams samples, and tells how many are done the first time."""
    advances = [advance]

    def stream() -> Iterator[Batch]:
        tell = advances.pop() if advances else lambda _: None
        for batch in subset.batches():
            yield batch
            tell(len(batch))

    return stream
