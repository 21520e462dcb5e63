"""Latency: time models in turns on the same inputs, so that only the models make a difference.

What makes two timings of one model differ, and what is done about it:

* the speed of the machine drifts: a round runs every model once, and ratios are taken within it;
* the one that runs first finds other caches: the order is drawn, and reversed in the next round;
* other programs take the cores: that time is not counted (see :mod:`onnxprune.timing.stopwatch`);
* threads of an idle session spin: they are told to stop (see
:class:`~onnxprune.model.session.Session`);
* two sessions of one model lie differently in memory: they are made anew for every block of
  rounds, in another order, and the interval of a ratio is that of redrawn blocks.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx

from onnxprune.arrays import F64, Bool
from onnxprune.errors import ModelError
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, Session, samples_of
from onnxprune.timing.stopwatch import Lap, Stopwatch, thread_ids

NOISE = 0.03
"""How far from 1 the ratio of a model to itself may come out."""

SLOWER = 1.02
"""What the lower end of a ratio's interval is above where a model is slower."""

BLOCK_S, BLOCK_ROUNDS = 0.25, 200
"""What a block takes at most, unless its sessions took longer to make."""

MIN_BLOCKS, MIN_ROUNDS = 12, 3
"""Blocks before ratios count as known, and rounds however long they take."""

FEW_BLOCKS = 6
"""Fewer say nothing about how blocks differ."""

MIN_CLEAN = 30
"""Runs that were not held up, below which those that were are not left out."""

WARM_RUNS, WARM_S = 3, 0.5
RESAMPLES = 200


@dataclass(frozen=True)
class Timing:
    """How long a model takes, in milliseconds.

    Attributes:
        p50_ms: median of single runs; ``p95_ms`` and ``p99_ms`` are further percentiles.
        p95_ms: see above.
        p99_ms: see above.
        mean_ms: their mean.
        load_ms: median of making a session: reading the model and optimising its graph.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    load_ms: float


@dataclass(frozen=True)
class Ratio:
    """A model's latency divided by that of the first, as the median over rounds.

    Attributes:
        value: the median; below 1 is faster than the first.
        low: lower end of its 95 % interval.
        high: upper end of it.
        quartiles: those of the ratios of single rounds.
    """

    value: float
    low: float
    high: float
    quartiles: tuple[float, float]

    @property
    def is_slower(self) -> bool:
        """Whether the model is slower than the first, whatever value the interval holds."""
        return self.low > SLOWER


@dataclass(frozen=True)
class Comparison:
    """Latencies of some models, in their order.

    Attributes:
        timings: one for each model.
        ratios: one for each model; that of the first is exactly 1.
        rounds: how often each was run.
        blocks: how often their sessions were made.
        disturbed: share of the runs that other programs kept waiting.
        settled: whether all ratios are known as well as was asked for.
    """

    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    rounds: int
    blocks: int
    disturbed: float
    settled: bool


@dataclass(frozen=True)
class Block:
    """Rounds with the same sessions.

    Attributes:
        seconds: of each run, ``float64 [rounds, models]``.
        held_up: whether that is too long by an unknown amount, ``bool [rounds, models]``.
        disturbed: whether other programs kept it waiting, ``bool [rounds, models]``.
        load: seconds that each session took to make, ``float64 [models]``.
    """

    seconds: F64
    held_up: Bool
    disturbed: Bool
    load: F64

    def __len__(self) -> int:
        return len(self.seconds)


def in_batches(
    model: Model, feeds: Feeds, sizes: Sequence[int], *, runner: Runner = PLAIN
) -> list[Feeds]:
    """Return inputs of so many samples, once for each size that the model runs with.

    Args:
        model: the model.
        feeds: inputs of it, whose samples are repeated or left out; what they are returned as where
            the model runs with none of the sizes.
        sizes: numbers of samples.
        runner: runs the models.
    """
    free = {s.name for s in model.inputs if s.shape and not isinstance(s.shape[0], int)}
    session = runner.session(model.proto, optimize=False) if free else None
    found: dict[int, Feeds] = {}
    for size in sizes:
        one = {n: np.resize(v, (size, *v.shape[1:])) if n in free else v for n, v in feeds.items()}
        if session is None or samples_of(one) != size:
            continue
        with contextlib.suppress(ModelError):
            session.run(one)
            found[size] = one
    return list(found.values()) or [feeds]


def compare(
    models: Sequence[onnx.ModelProto | Path],
    feeds: Feeds | Sequence[Feeds],
    *,
    runner: Runner = PLAIN,
    seconds: float = 20.0,
    rounds: int | None = None,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Comparison:
    """Time models in turns until their ratios to the first are known.

    Args:
        models: the models, or their files (which makes the time to load them that of users).
        feeds: what to run them on: the same for all, or one for each.
        runner: makes the sessions; it is told of milliseconds.
        seconds: to take at most, once every model was run a few times.
        rounds: to take exactly, rather than until the ratios are known; ``seconds`` still binds.
        tolerance: half the width of the intervals, relative to the ratios, that is narrow enough.
        seed: of the order.

    Raises:
        ModelError: if onnxruntime cannot load or run a model.
    """
    own = [feeds] * len(models) if isinstance(feeds, Mapping) else list(feeds)
    if not models or len(own) != len(models):
        raise ValueError(f"{len(models)} models and {len(own)} sets of inputs")
    rng = np.random.default_rng(seed)
    total = round(1000 * seconds)
    advance, told = runner.progress("latency", total), 0
    start = perf_counter()
    blocks: list[Block] = []
    check, left = MIN_BLOCKS, rounds or sys.maxsize
    while left and (perf_counter() < start + seconds or sum(map(len, blocks)) < MIN_ROUNDS):
        blocks.append(
            _block(runner.timed, models, own, min(left, BLOCK_ROUNDS), start + seconds, rng)
        )
        left -= len(blocks[-1])
        spent = min(round(1000 * (perf_counter() - start)), total)
        advance(spent - told)
        told = spent
        if rounds is None and len(blocks) >= check:
            check = math.ceil(1.5 * check)
            if summarise(blocks, tolerance).settled:
                break
    advance(total - told)
    return summarise(blocks, tolerance)


def _block(
    make: Callable[[onnx.ModelProto | Path], Session],
    models: Sequence[onnx.ModelProto | Path],
    feeds: Sequence[Feeds],
    most: int,
    deadline: float,
    rng: np.random.Generator,
) -> Block:
    """Make sessions and take rounds, of which there is at least one."""
    start = perf_counter()
    load = np.zeros(len(models))
    threads = thread_ids()
    calls: dict[int, Callable[[], object]] = {}
    for k in map(int, rng.permutation(len(models))):
        began = perf_counter()
        session = make(models[k])
        load[k] = perf_counter() - began
        calls[k] = partial(session.run, feeds[k])
    for k in calls:
        _warm_up(calls[k])
    began = perf_counter()
    # Making sessions costs time as well: at most half of it.
    end = min(began + max(BLOCK_S, began - start), deadline)
    laps: list[list[Lap]] = []
    order = rng.permutation(len(models))
    with Stopwatch(thread_ids() - threads) as watch:
        while not laps or (len(laps) < most and perf_counter() < end):
            order = order[::-1] if len(laps) % 2 else rng.permutation(len(models))
            by_model = {int(k): watch.time(calls[int(k)]) for k in order}
            laps.append([by_model[k] for k in range(len(models))])
    return Block(
        np.array([[lap.seconds for lap in row] for row in laps]),
        np.array([[lap.held_up for lap in row] for row in laps]),
        np.array([[lap.disturbed for lap in row] for row in laps]),
        load,
    )


def _warm_up(call: Callable[[], object]) -> None:
    start = perf_counter()
    for _ in range(WARM_RUNS):
        call()
        if perf_counter() - start > WARM_S:
            return


def summarise(blocks: Sequence[Block], tolerance: float = 0.01) -> Comparison:
    """Turn what was measured into medians and ratios (see :func:`compare`)."""
    ratios = tuple(_ratio(blocks, k) for k in range(len(blocks[0].load)))
    return Comparison(
        timings=tuple(_timing(blocks, k) for k in range(len(ratios))),
        ratios=ratios,
        rounds=sum(map(len, blocks)),
        blocks=len(blocks),
        disturbed=float(np.concatenate([b.disturbed for b in blocks]).mean()),
        settled=all(r.high - r.low <= 2 * tolerance * r.value for r in ratios),
    )


def _timing(blocks: Sequence[Block], k: int) -> Timing:
    values = np.concatenate(_usable([b.seconds[:, k] for b in blocks],
                                    [b.held_up[:, k] for b in blocks]))  # fmt: skip
    p50, p95, p99 = (float(p) for p in 1e3 * np.percentile(values, [50, 95, 99]))
    load = float(np.median([b.load[k] for b in blocks]))
    return Timing(p50, p95, p99, 1e3 * float(values.mean()), 1e3 * load)


def _ratio(blocks: Sequence[Block], k: int) -> Ratio:
    samples = _usable(
        [b.seconds[:, k] / b.seconds[:, 0] for b in blocks],
        [b.held_up[:, k] | b.held_up[:, 0] for b in blocks],
    )
    pooled = np.concatenate(samples)
    units = samples if len(samples) >= FEW_BLOCKS else list(pooled[:, None])
    rng = np.random.default_rng(0)
    draws = rng.integers(len(units), size=(RESAMPLES, len(units)))
    medians = [np.median(np.concatenate([units[j] for j in draw])) for draw in draws]
    low, high = np.percentile(medians, [2.5, 97.5])
    first, value, third = np.percentile(pooled, [25, 50, 75])
    return Ratio(float(value), float(low), float(high), (float(first), float(third)))


def _usable(values: Sequence[F64], held_up: Sequence[Bool]) -> list[F64]:
    """Leave out what was held up, unless little else is there."""
    kept = [v[~h] for v, h in zip(values, held_up, strict=True)]
    if sum(map(len, kept)) < min(MIN_CLEAN, sum(map(len, values))):
        return list(values)
    return [v for v in kept if len(v)]
