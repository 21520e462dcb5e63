"""Speed: a pruned model timed in turns with its original."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter

from onnxprune.graph import Model
from onnxprune.latency import NOISE, Comparison, compare
from onnxprune.session import Session
from onnxprune.study import Study

PATIENCE_S, PATIENCE_SHARE = 5.0, 0.25
"""How long the check of a result may take: the larger of this, and this share of the run."""

LOOK_S, LOOK_SHARE = 0.3, 0.05
"""The least time for a first look, and the share of the run that it may take up to SECONDS."""

SECONDS = 4.0
"""The time for knowing a ratio well."""

SLOWER = 1.1
"""The ratio that the interval must be above before a model counts as slower. Small models on busy
machines come out a few percent slower now and then, and that must not decide what is written."""

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
        is_slower: whether it is slower beyond all doubt.
    """

    value: float
    low: float
    high: float
    batch: int
    is_slower: bool = False


def measure_speed(study: Study, model: Model, seconds: float = SECONDS) -> Speed:
    """Time a model in turns with the original, with the threads and the provider of the request.

    Args:
        study: knows the original.
        model: the pruned model.
        seconds: to take at most, but for a few runs.
    """
    request, feeds = study.request, study.timing_feeds
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
    return speed_of(result, max((len(v) for v in feeds.values() if v.ndim), default=1))


def speed_of(result: Comparison, batch: int) -> Speed:
    """Read the speed of the second model of a comparison."""
    ratio = result.ratios[1]
    sure = result.settled and ratio.low > SLOWER
    return Speed(ratio.value, ratio.low, ratio.high, batch, sure)


def check_speed(study: Study, model: Model) -> Speed | None:
    """Look whether a model is slower than its original.

    A first look is short. Only what does not come out faster in it is looked at again, so that a
    verdict never rests on little. None where that would take long, for what the run is.
    """
    if 2 * _RUNS * _one_run(study) > max(PATIENCE_S, PATIENCE_SHARE * study.log.elapsed):
        return None
    look = min(max(LOOK_S, LOOK_SHARE * study.log.elapsed), SECONDS)
    speed = measure_speed(study, model, look)
    return measure_speed(study, model) if speed.value > 1 else speed


def _one_run(study: Study) -> float:
    """Return roughly how long the original takes to run once it is loaded."""
    request = study.request
    make = partial(Session, threads=request.threads, provider=request.provider, timed=True)
    session, feeds = make(study.given.original.proto), study.timing_feeds
    start = perf_counter()
    session.run(feeds)
    return perf_counter() - start


def refusal(speed: Speed | None) -> str:
    """Return why a model must not be written, in a sentence; empty if it may be."""
    if speed is None or not speed.is_slower:
        return ""
    return (
        f"it is slower than the original: its latency is {speed.value:.3f} times as long "
        f"({speed.low:.3f} to {speed.high:.3f}); remove more, keep multiples of 8 or 16 channels, "
        "use --mode weights, or write it with --force"
    )
