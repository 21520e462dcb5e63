"""Log: clock, warnings and progress of one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onnxprune.accuracy import Accuracy, measure_accuracy
from onnxprune.graph import Model
from onnxprune.holdout import Part, Progress
from onnxprune.request import Request


class Log:
    """Clock, warnings and progress of one call."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.timings: dict[str, float] = {}
        self.warnings: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure how long a stage takes."""
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def accuracy(self, model: Model, part: Part, request: Request) -> Accuracy | None:
        """Measure accuracy on a part of the samples; None if it is empty."""
        if not len(part):
            return None
        return measure_accuracy(
            model,
            part.batches(),
            output=request.output,
            threads=request.threads,
            progress=self.progress("evaluate", len(part)),
        )
