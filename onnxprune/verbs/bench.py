"""Bench: measure models side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.log import Progress, silent
from onnxprune.model import cost
from onnxprune.model import model as graph
from onnxprune.model.cost import Cost
from onnxprune.model.model import Model, TensorSpec
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.session import (
    PROVIDER,
    Feeds,
    check_provider,
    quantize_dynamic,
)
from onnxprune.report.benchmark import Benchmark, Entry
from onnxprune.samples.inputs import observe_inputs
from onnxprune.timing.footprint import measure_footprint
from onnxprune.timing.latency import Comparison, compare


def bench(
    models: Sequence[str | Path],
    *,
    batch_size: int = 1,
    threads: int = 0,
    provider: str = PROVIDER,
    seconds: float = 20.0,
    rounds: int | None = None,
    int8: bool = True,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Benchmark:
    """Measure models that take the same inputs, side by side, on made-up inputs.

    Args:
        models: their files; the first is what the others are compared with.
        batch_size: samples per run, unless the models fix it.
        threads: intra-operator threads; 0 lets onnxruntime choose.
        provider: the execution provider.
        seconds: to take at most for the latency, once every model was run a few times.
        rounds: to take exactly, rather than until the ratios are known within 1 %.
        int8: measure the first model with dynamically quantised weights as well.
        dims: sizes of dynamic axes, by name or by input and axis (``x:1``).
        seed: of the inputs and the order of the runs.
        progress: see :data:`~onnxprune.log.Progress`.

    Raises:
        OnnxpruneError: if a setting is out of its range.
        ModelError: if a model cannot be read or run, takes other inputs than the first, or if
            onnxruntime lacks the provider.
    """
    paths = [Path(m) for m in models]
    _check_settings(paths, batch_size, threads, seconds, rounds, seed)
    check_provider(provider)
    runner = Runner(threads, provider, progress)
    loaded = [graph.load(path) for path in paths]
    for path, model in zip(paths, loaded, strict=True):
        _check_inputs(paths[0], loaded[0].inputs, path, model.inputs)
    strictest = min(loaded, key=lambda m: sum(map(_free_sizes, m.inputs)))
    shapes = observe_inputs(strictest, None, seed=seed, runner=runner, batch=batch_size, dims=dims)
    feeds = shapes.feeds[0]
    candidates = [
        _try(str(path), model, feeds, runner) for path, model in zip(paths, loaded, strict=True)
    ]
    warnings = []
    if shapes.batch != batch_size:
        warnings.append(
            f"the models fix the batch size at {shapes.batch}: measured with that, not {batch_size}"
        )
    with tempfile.TemporaryDirectory() as folder:
        failed = None
        if int8:
            name = f"{paths[0]} int8"
            try:
                quantised = _quantised(loaded[0], Path(folder, "int8.onnx"))
                entry = _try(name, quantised, feeds, runner, int8=True)
                candidates.insert(1, entry)
            except ModelError as error:
                failed = Entry(name, int8=True, error=str(error))
        measured = compare(
            [c.model.files[0] for c in candidates],
            feeds,
            runner=runner,
            seconds=seconds,
            rounds=rounds,
            seed=seed,
        )
        advance = progress("memory", len(candidates))
        entries = []
        for k, candidate in enumerate(candidates):
            files = candidate.model.files
            footprint = measure_footprint(files, feeds, runner=runner)
            entries.append(
                Entry(
                    candidate.name,
                    candidate.int8,
                    cost=candidate.cost,
                    footprint=footprint,
                    timing=measured.timings[k],
                    ratio=measured.ratios[k],
                )
            )
            advance(1)
    if failed:
        entries.insert(1, failed)
    return Benchmark(
        tuple(entries),
        shapes.batch,
        threads,
        provider,
        {n: (str(v.dtype), tuple(v.shape)) for n, v in feeds.items()},
        measured.rounds,
        measured.blocks,
        measured.disturbed,
        measured.settled,
        tuple(warnings + _doubts(measured, threads)),
    )


@dataclass(frozen=True)
class _Candidate:
    """A model that was loaded and ran."""

    name: str
    model: Model
    cost: Cost
    int8: bool = False


def _check_settings(
    paths: Sequence[Path],
    batch_size: int,
    threads: int,
    seconds: float,
    rounds: int | None,
    seed: int,
) -> None:
    if not paths:
        raise OnnxpruneError("give at least one model")
    least = {"batch_size": (batch_size, 1), "threads": (threads, 0), "seed": (seed, 0)}
    for name, (value, low) in (least | {"rounds": (1 if rounds is None else rounds, 1)}).items():
        if value < low:
            raise OnnxpruneError(f"{name} must be at least {low}; got {value}")
    if not seconds > 0:
        raise OnnxpruneError(f"seconds must be more than 0; got {seconds:g}")


def _try(
    name: str, model: Model, feeds: Feeds, runner: Runner, *, int8: bool = False
) -> _Candidate:
    """Run a model once, and count what it costs."""
    try:
        runner.timed(model.files[0]).run(feeds)
        shapes = observe(model, feeds, runner=runner)
        return _Candidate(name, model, cost.measure(model, shapes), int8)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def _quantised(model: Model, target: Path) -> Model:
    quantize_dynamic(model.proto, target)
    return graph.load(target)


def _free_sizes(spec: TensorSpec) -> int:
    return sum(not _is_fixed(size) for size in spec.shape)


def _is_fixed(size: int | str) -> bool:
    return isinstance(size, int) and size > 0


def _check_inputs(
    first: Path, ours: Sequence[TensorSpec], other: Path, theirs: Sequence[TensorSpec]
) -> None:
    """Make sure that two models can be fed the same."""
    by_name = {spec.name: spec for spec in theirs}
    same = by_name.keys() == {spec.name for spec in ours} and all(
        _compatible(spec, by_name[spec.name]) for spec in ours
    )
    if not same:
        raise ModelError(
            f"{other} takes other inputs than {first}: got {_listed(theirs)}, expected "
            f"{_listed(ours)}; only models with the same inputs can be compared"
        )


def _compatible(a: TensorSpec, b: TensorSpec) -> bool:
    return (
        a.dtype == b.dtype
        and len(a.shape) == len(b.shape)
        and all(
            m == n or not (_is_fixed(m) and _is_fixed(n))
            for m, n in zip(a.shape, b.shape, strict=True)
        )
    )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(
        f"'{s.name}' {s.dtype}[{', '.join(str(n) or '?' for n in s.shape)}]" for s in specs
    )


def _doubts(measured: Comparison, threads: int) -> list[str]:
    """Say what makes the numbers less certain than they look."""
    doubts = []
    if measured.disturbed >= BUSY:
        fewer = "" if threads == 1 else "; with several threads, times are those of fewer cores"
        doubts.append(
            f"the machine is busy: other programs kept {100 * measured.disturbed:.0f} % of the "
            f"runs waiting, which is not counted{fewer}"
        )
    if not measured.settled:
        worst = max(measured.ratios, key=lambda r: (r.high - r.low) / r.value)
        doubts.append(
            f"a ratio is known only within {worst.low:.3f} to {worst.high:.3f}: measure longer "
            "(--seconds), or on a machine with less to do"
        )
    return doubts


BUSY = 0.2
"""The share of disturbed runs from which a reader should know."""
