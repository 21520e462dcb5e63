"""Speed check: a result is timed beside its original before it is written."""

from __future__ import annotations

from time import perf_counter

from onnxprune.model.model import Model
from onnxprune.model.session import Feeds, samples_of
from onnxprune.run.study import Study
from onnxprune.timing.latency import NOISE, compare
from onnxprune.timing.speed import Speed, speed_of

PATIENCE_S, PATIENCE_SHARE = 5.0, 0.25
"""How long the check of a result may take: the larger of this, and this share of the run."""

LOOK_S, LOOK_SHARE = 0.3, 0.05
"""The least time for a first look, and the share of the run that it may take up to SECONDS."""

SECONDS = 4.0
"""The time for knowing a ratio well."""

_RUNS = 8
"""Runs that a comparison takes at least, warm-up and the making of sessions included."""


def measure_speed(
    study: Study, model: Model, seconds: float = SECONDS, feeds: Feeds | None = None
) -> Speed:
    """Time a model in turns with the original, with the threads and the provider of the request.

    Args:
        study: knows the original.
        model: the pruned model.
        seconds: to take at most, but for a few runs.
        feeds: what to run them on; None for the ``latency_batch`` of the request.
    """
    request, feeds = study.run.request, feeds or study.run.timing_feeds[0]
    with study.run.log.stage("latency"):
        result = compare(
            [study.run.given.original.proto, model.proto],
            feeds,
            runner=study.run.runner,
            seconds=seconds,
            tolerance=NOISE / 2,
            seed=request.seed,
        )
    return speed_of(result, samples_of(feeds))


def check_speed(study: Study, model: Model) -> Speed | None:
    """Look whether a model is slower than its original, at any of the numbers of samples.

    A first look is short. Only what does not come out faster in it is looked at again, so that a
    verdict never rests on little. None where that would take long, for what the run is.

    Returns:
        The first speed that is slower; else that with the ``latency_batch`` of the request.
    """
    if 2 * _RUNS * _one_run(study) > max(PATIENCE_S, PATIENCE_SHARE * study.run.log.elapsed):
        return None
    look = min(max(LOOK_S, LOOK_SHARE * study.run.log.elapsed), SECONDS)
    speeds = []
    for feeds in study.run.timing_feeds:
        speed = measure_speed(study, model, look, feeds)
        speeds.append(measure_speed(study, model, SECONDS, feeds) if speed.value > 1 else speed)
    return next((s for s in speeds if s.is_slower), speeds[0])


def _one_run(study: Study) -> float:
    """Return roughly how long the original takes to run once, on each of what it is timed on."""
    session, every = study.run.runner.timed(study.run.given.original.proto), study.run.timing_feeds
    start = perf_counter()
    for feeds in every:
        session.run(feeds)
    return perf_counter() - start
