"""Stopwatch: how long a call took, and how much of that it waited for other programs.

On a busy machine a run is now and then kept waiting for a core. The kernel knows for how long
(Linux; elsewhere nothing is known to have waited), so it can be told from the run itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import NamedTuple

PATIENCE = 0.02
"""The share of a call that may be waiting before the call counts as disturbed."""

_TASKS = "/proc/self/task"


class Lap(NamedTuple):
    """One call.

    Attributes:
        seconds: wall-clock time without that for which the calling thread waited for a core.
        held_up: whether worker threads waited, so that the caller, which waits for them, took
            longer by an amount that nobody knows.
        disturbed: whether the caller or they waited.
    """

    seconds: float
    held_up: bool
    disturbed: bool


def thread_ids() -> set[str]:
    """Return the ids of this process's threads; none where they cannot be known."""
    try:
        return set(os.listdir(_TASKS))
    except OSError:
        return set()


class Stopwatch:
    """Times calls on the thread that made it.

    Args:
        workers: ids of the threads that work for the calls.
    """

    def __init__(self, workers: set[str]) -> None:
        self._caller = _open({str(threading.get_native_id())})
        self._workers = _open(workers)

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for file in [*self._caller, *self._workers]:
            os.close(file)

    def time(self, call: Callable[[], object]) -> Lap:
        """Time one call."""
        before = _waited(self._caller), _waited(self._workers)
        start = perf_counter()
        call()
        wall = perf_counter() - start
        caller = _waited(self._caller) - before[0]
        workers = _waited(self._workers) - before[1]
        limit = PATIENCE * wall
        # The kernel's clock is another one: never nothing, which ratios are divided by.
        own = max(wall - caller, 1e-9)
        return Lap(own, workers > limit, workers + caller > limit)


def _open(threads: set[str]) -> list[int]:
    files = []
    for thread in sorted(threads):
        try:
            files.append(os.open(f"{_TASKS}/{thread}/schedstat", os.O_RDONLY))
        except OSError:  # not Linux, or the thread has ended
            continue
    return files


def _waited(files: list[int]) -> float:
    """Return the seconds for which threads were ready but had no core, so far."""
    total = 0
    for file in files:
        try:
            total += int(os.pread(file, 64, 0).split()[1])
        except (OSError, IndexError, ValueError):  # the thread has ended
            continue
    return total / 1e9
