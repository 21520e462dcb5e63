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
"""How far from 1 the ratio of a model's latency to its own may come out."""

SLOWER = 1.02
"""A model is slower than the first where the lower end of its ratio's interval is above this."""

BLOCK_S, BLOCK_ROUNDS = 0.25, 200
"""Seconds and rounds of a block at most; the seconds are more if its sessions took longer to
make."""

MIN_BLOCKS, MIN_ROUNDS = 12, 3
"""Blocks before ratios count as known, and rounds that are taken however long they last."""

FEW_BLOCKS = 6
"""Fewer blocks say nothing about how blocks differ: then single rounds are redrawn."""

MIN_CLEAN = 30
"""With fewer runs that were not held up, those that were held up count as well."""

WARM_RUNS, WARM_S = 3, 0.5
"""Runs before those that count, unless they take so many seconds."""

RESAMPLES = 200
"""How often blocks are redrawn for an interval."""


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
    """Return a model's inputs with other numbers of samples, for each that it runs with.

    Args:
        model: the model.
        feeds: inputs of it, ``[samples, ...]``, whose samples are repeated or left out; they are
            returned as they are where the model runs with none of the sizes.
        sizes: numbers of samples.
        runner: runs the model, unoptimised.
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
        runner: makes the sessions, and hears of the progress in milliseconds.
        seconds: to take at most, once every model was run a few times.
        rounds: to take exactly, rather than until the ratios are known; ``seconds`` still binds.
        tolerance: half the width of the intervals, relative to the ratios, that is narrow enough.
        seed: of the order in which the models take turns.

    Raises:
        ModelError: if onnxruntime cannot load or run a model.
        ValueError: if there is no model, or not one set of inputs for each.
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
    seconds, held_up, disturbed = np.moveaxis(np.array(laps, np.float64), 2, 0)
    return Block(seconds, held_up.astype(np.bool_), disturbed.astype(np.bool_), load)


def _warm_up(call: Callable[[], object]) -> None:
    start = perf_counter()
    for _ in range(WARM_RUNS):
        call()
        if perf_counter() - start > WARM_S:
            return


def summarise(blocks: Sequence[Block], tolerance: float = 0.01) -> Comparison:
    """Turn blocks into percentiles and ratios; nothing in it depends on chance.

    Args:
        blocks: of the same models, at least one.
        tolerance: see :func:`compare`.
    """
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
    kept = _usable([b.seconds[:, k] for b in blocks], [b.held_up[:, k] for b in blocks])
    values = 1e3 * np.concatenate(kept)
    load = 1e3 * np.median([b.load[k] for b in blocks])
    return Timing(*map(float, [*np.percentile(values, [50, 95, 99]), values.mean(), load]))


def _ratio(blocks: Sequence[Block], k: int) -> Ratio:
    samples = _usable(
        [b.seconds[:, k] / b.seconds[:, 0] for b in blocks],
        [b.held_up[:, k] | b.held_up[:, 0] for b in blocks],
    )
    pooled = np.concatenate(samples)
    first, value, third = map(float, np.percentile(pooled, [25, 50, 75]))
    low, high = _interval(samples if len(samples) >= FEW_BLOCKS else list(pooled[:, None]))
    return Ratio(value, low, high, (first, third))


def _interval(units: Sequence[F64]) -> tuple[float, float]:
    """Return the 95 % interval of the median over all values, where whole units are redrawn."""
    if len(units) == 1:
        return float(np.median(units[0])), float(np.median(units[0]))
    from scipy.stats import bootstrap  # takes a second to import: not where nothing is timed

    found = bootstrap(
        (np.arange(len(units)),),
        lambda draw: np.median(np.concatenate([units[k] for k in draw])),
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=0,
    ).confidence_interval
    return float(found.low), float(found.high)


def _usable(values: Sequence[F64], held_up: Sequence[Bool]) -> list[F64]:
    """Leave out what was held up, unless little else is there."""
    kept = [v[~h] for v, h in zip(values, held_up, strict=True)]
    if sum(map(len, kept)) < min(MIN_CLEAN, sum(map(len, values))):
        return list(values)
    return [v for v in kept if len(v)]
