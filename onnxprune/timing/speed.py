"""Speed: a pruned model timed in turns with its original."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.timing.latency import Comparison


@dataclass(frozen=True)
class Speed:
    """The measured latency of a model, divided by that of its original.

    Attributes:
        value: the ratio; below 1 is faster.
        low: lower end of its 95 % interval.
        high: upper end of it.
        batch: the samples of a run.
        is_slower: whether it is slower, see :attr:`onnxprune.timing.latency.Ratio.is_slower`.
    """

    value: float
    low: float
    high: float
    batch: int
    is_slower: bool = False


def speed_of(result: Comparison, batch: int) -> Speed:
    """Return the speed of the second of two models, the first of which is its original.

    Args:
        result: the comparison.
        batch: samples of a run.
    """
    ratio = result.ratios[1]
    return Speed(ratio.value, ratio.low, ratio.high, batch, ratio.is_slower)


def refusal(speed: Speed | None) -> str:
    """Return why a model must not be written, in a sentence; empty if it may be."""
    if speed is None or not speed.is_slower:
        return ""
    return (
        f"it is slower than the original: at batch {speed.batch} its latency is {speed.value:.3f} "
        f"times as long ({speed.low:.3f} to {speed.high:.3f}); remove more, keep multiples of 8 or "
        "16 channels, use --mode weights, or write it with --force"
    )
