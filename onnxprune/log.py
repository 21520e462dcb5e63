"""Log: the clock, the warnings and the progress of one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Log:
    """What a run has to tell besides its result.

    Attributes:
        progress: see :data:`~onnxprune.log.Progress`.
        timings: seconds by stage.
        warnings: a line each.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.timings: dict[str, float] = {}
        self.warnings: list[str] = []
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start


Progress = Callable[[str, int], Callable[[int], None]]
"""Called with a stage and its number of samples; returns what to call as they are done."""


def silent(_: str, __: int) -> Callable[[int], None]:
    """Report no progress."""
    return lambda _: None
