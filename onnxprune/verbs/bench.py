"""Bench: measure models side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.log import Progress, silent
from onnxprune.model import cost
from onnxprune.model import model as graph
from onnxprune.model.model import Model, TensorSpec
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.session import PROVIDER, Feeds, check_provider, quantize_dynamic
from onnxprune.report.benchmark import Benchmark, Entry
from onnxprune.samples.inputs import observe_inputs
from onnxprune.timing.footprint import measure_footprint
from onnxprune.timing.latency import Comparison, compare

BUSY = 0.2
"""The share of disturbed runs from which a reader should know."""


class BenchSettings(TypedDict, total=False):
    """The keywords of :func:`bench`; what they mean and their defaults are in :class:`HowToRun`."""

    batch_size: int
    threads: int
    provider: str
    seconds: float
    rounds: int | None
    int8: bool
    dims: Mapping[str, int] | None
    seed: int


@dataclass(frozen=True)
class HowToRun:
    """How models are to be measured.

    Attributes:
        batch_size: samples per run, unless the models fix it.
        threads: intra-operator threads; 0 lets onnxruntime choose.
        provider: the execution provider.
        seconds: to take at most for the latency, once every model was run a few times.
        rounds: to take exactly, rather than until the ratios are known within 1 %.
        int8: measure the first model with dynamically quantised weights as well.
        dims: sizes of dynamic axes, by name or by input and axis (``x:1``).
        seed: of the inputs and the order of the runs.

    Raises:
        OnnxpruneError: if one of them is out of its range.
    """

    batch_size: int = 1
    threads: int = 0
    provider: str = PROVIDER
    seconds: float = 20.0
    rounds: int | None = None
    int8: bool = True
    dims: Mapping[str, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "threads": 0, "seed": 0, "rounds": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise OnnxpruneError(f"{name} must be at least {least}; got {value}")
        if not self.seconds > 0:
            raise OnnxpruneError(f"seconds must be more than 0; got {self.seconds:g}")


def bench(
    models: Sequence[str | Path],
    *,
    progress: Progress = silent,
    **settings: Unpack[BenchSettings],
) -> Benchmark:
    """Measure models that take the same inputs, side by side, on made-up inputs.

    Args:
        models: their files; the first is what the others are compared with.
        progress: see :data:`~onnxprune.log.Progress`.
        **settings: see :class:`HowToRun`.

    Raises:
        OnnxpruneError: if a setting is out of its range.
        ModelError: if a model cannot be read or run, takes other inputs than the first, or if
            onnxruntime lacks the provider.
    """
    how = HowToRun(**settings)
    if not models:
        raise OnnxpruneError("give at least one model")
    check_provider(how.provider)
    runner = Runner(how.threads, how.provider, progress)
    loaded = [(str(Path(path)), graph.load(path)) for path in models]
    for other in loaded:
        _check_inputs(loaded[0], other)
    strictest = min((m for _, m in loaded), key=lambda m: sum(map(_free_sizes, m.inputs)))
    shapes = observe_inputs(
        strictest, None, seed=how.seed, runner=runner, batch=how.batch_size, dims=how.dims
    )
    feeds = shapes.feeds[0]
    ran = [(_try(Entry(name), model, feeds, runner), model) for name, model in loaded]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        if how.int8:
            int8 = Entry(f"{loaded[0][0]} int8", int8=True)
            try:
                quantised = _quantised(loaded[0][1], Path(folder, "int8.onnx"))
                ran.insert(1, (_try(int8, quantised, feeds, runner), quantised))
            except ModelError as error:
                failed.append(replace(int8, error=str(error)))
        measured = compare(
            [model.files[0] for _, model in ran],
            feeds,
            runner=runner,
            seconds=how.seconds,
            rounds=how.rounds,
            seed=how.seed,
        )
        entries = _entries(ran, measured, feeds, runner)
    return Benchmark(
        (*entries[:1], *failed, *entries[1:]),
        shapes.batch,
        how.threads,
        how.provider,
        {name: (str(value.dtype), tuple(value.shape)) for name, value in feeds.items()},
        measured,
        tuple(_doubts(measured, how, shapes.batch)),
    )


def _try(entry: Entry, model: Model, feeds: Feeds, runner: Runner) -> Entry:
    """Run a model once, and count what it costs."""
    try:
        runner.timed(model.files[0]).run(feeds)
        return replace(entry, cost=cost.measure(model, observe(model, feeds, runner=runner)))
    except ModelError as error:
        raise ModelError(f"{entry.name}: {error}") from None


def _quantised(model: Model, target: Path) -> Model:
    quantize_dynamic(model.proto, target)
    return graph.load(target)


def _entries(
    ran: Sequence[tuple[Entry, Model]], measured: Comparison, feeds: Feeds, runner: Runner
) -> list[Entry]:
    """Add latencies to the models that were run, and measure what they take."""
    advance = runner.progress("memory", len(ran))
    entries = []
    for (entry, model), timing, ratio in zip(ran, measured.timings, measured.ratios, strict=True):
        footprint = measure_footprint(model.files, feeds, runner=runner)
        entries.append(replace(entry, footprint=footprint, timing=timing, ratio=ratio))
        advance(1)
    return entries


def _check_inputs(first: tuple[str, Model], other: tuple[str, Model]) -> None:
    """Make sure that two models (with their names) can be fed the same."""
    ours, theirs = ({spec.name: spec for spec in model.inputs} for _, model in (first, other))
    if ours.keys() != theirs.keys() or not all(_agree(ours[n], theirs[n]) for n in ours):
        raise ModelError(
            f"{other[0]} takes other inputs than {first[0]}: got {_listed(theirs.values())}, "
            f"expected {_listed(ours.values())}; only models with the same inputs can be compared"
        )


def _agree(a: TensorSpec, b: TensorSpec) -> bool:
    sizes = zip(a.shape, b.shape, strict=False)
    return (
        a.dtype == b.dtype
        and len(a.shape) == len(b.shape)
        and all(m == n or not (_is_fixed(m) and _is_fixed(n)) for m, n in sizes)
    )


def _free_sizes(spec: TensorSpec) -> int:
    return sum(not _is_fixed(size) for size in spec.shape)


def _is_fixed(size: int | str) -> bool:
    return isinstance(size, int) and size > 0


def _listed(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(
        f"'{s.name}' {s.dtype}[{', '.join(str(n) or '?' for n in s.shape)}]" for s in specs
    )


def _doubts(measured: Comparison, how: HowToRun, batch: int) -> Iterator[str]:
    """Say what makes the numbers less certain than they look, or other than was asked for."""
    if batch != how.batch_size:
        yield (
            f"the models fix the batch size at {batch}: measured with that, not {how.batch_size}"
        )
    if measured.disturbed >= BUSY:
        fewer = "" if how.threads == 1 else "; with several threads, times are those of fewer cores"
        yield (
            f"the machine is busy: other programs kept {100 * measured.disturbed:.0f} % of the "
            f"runs waiting, which is not counted{fewer}"
        )
    if not measured.settled:
        worst = max(measured.ratios, key=lambda r: (r.high - r.low) / r.value)
        yield (
            f"a ratio is known only within {worst.low:.3f} to {worst.high:.3f}: measure longer "
            "(--seconds), or on a machine with less to do"
        )
