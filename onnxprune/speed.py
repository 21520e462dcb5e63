"""Speed: a pruned model timed in turns with its original."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter

from onnxprune.graph import Model
from onnxprune.latency import NOISE, Comparison, compare, samples_of
from onnxprune.session import Feeds, Session
from onnxprune.study import Study

PATIENCE_S, PATIENCE_SHARE = 5.0, 0.25
"""How long the check of a result may take: the larger of this, and this share of the run."""

LOOK_S, LOOK_SHARE = 0.3, 0.05
"""The least time for a first look, and the share of the run that it may take up to SECONDS."""

SECONDS = 4.0
"""The time for knowing a ratio well."""

_RUNS = 8
"""Runs that a comparison takes at least, warm-up and the making of sessions included."""


@dataclass(frozen=True)
class Speed:
    """The measured latency of a model, divided by that of its original.

    Attributes:
        value: the ratio; below 1 is faster.
        low: lower end of its 95 % interval.
        high: upper end of it.
        batch: the samples of a run.
        is_slower: whether it is slower, see :attr:`onnxprune.latency.Ratio.is_slower`.
    """

    value: float
    low: float
    high: float
    batch: int
    is_slower: bool = False


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
    request, feeds = study.request, feeds or study.timing_feeds[0]
    with study.log.stage("latency"):
        result = compare(
            [study.given.original.proto, model.proto],
            feeds,
            threads=request.threads,
            provider=request.provider,
            seconds=seconds,
            tolerance=NOISE / 2,
            seed=request.seed,
            progress=study.log.progress,
        )
    return speed_of(result, samples_of(feeds))


def speed_of(result: Comparison, batch: int) -> Speed:
    """Read the speed of the second model of a comparison."""
    ratio = result.ratios[1]
    return Speed(ratio.value, ratio.low, ratio.high, batch, ratio.is_slower)


def check_speed(study: Study, model: Model) -> Speed | None:
    """Look whether a model is slower than its original, at any of the numbers of samples.

    A first look is short. Only what does not come out faster in it is looked at again, so that a
    verdict never rests on little. None where that would take long, for what the run is.

    Returns:
        The first speed that is slower; else that with the ``latency_batch`` of the request.
    """
    if 2 * _RUNS * _one_run(study) > max(PATIENCE_S, PATIENCE_SHARE * study.log.elapsed):
        return None
    look = min(max(LOOK_S, LOOK_SHARE * study.log.elapsed), SECONDS)
    speeds = []
    for feeds in study.timing_feeds:
        speed = measure_speed(study, model, look, feeds)
        speeds.append(measure_speed(study, model, SECONDS, feeds) if speed.value > 1 else speed)
    return next((s for s in speeds if s.is_slower), speeds[0])


def _one_run(study: Study) -> float:
    """Return roughly how long the original takes to run once, on each of what it is timed on."""
    request = study.request
    make = partial(Session, threads=request.threads, provider=request.provider, timed=True)
    session, every = make(study.given.original.proto), study.timing_feeds
    start = perf_counter()
    for feeds in every:
        session.run(feeds)
    return perf_counter() - start


def refusal(speed: Speed | None) -> str:
    """Return why a model must not be written, in a sentence; empty if it may be."""
    if speed is None or not speed.is_slower:
        return ""
    return (
        f"it is slower than the original: at batch {speed.batch} its latency is {speed.value:.3f} "
        f"times as long ({speed.low:.3f} to {speed.high:.3f}); remove more, keep multiples of 8 or "
        "16 channels, use --mode weights, or write it with --force"
    )
