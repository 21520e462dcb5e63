"""Benchmark: what models cost to run, store and load, side by side."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune import cost, graph
from onnxprune.cost import Cost
from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.footprint import Footprint, measure_footprint
from onnxprune.graph import Model, TensorSpec
from onnxprune.holdout import Progress, silent
from onnxprune.latency import Comparison, Ratio, Timing, compare
from onnxprune.observe import observe
from onnxprune.report import plain
from onnxprune.session import (
    PROVIDER,
    Feeds,
    Session,
    check_provider,
    quantize_dynamic,
    runtime_version,
)
from onnxprune.subject import observe_inputs

if TYPE_CHECKING:
    from rich.console import RenderableType

ZEROS = 0.1
"""The share of zeros among the weights from which a reader may expect something of them."""

BUSY = 0.2
"""The share of disturbed runs from which a reader should know."""


@dataclass(frozen=True)
class Entry:
    """A model of a benchmark.

    Attributes:
        name: its file as it was given; "int8" after it for the quantised version.
        int8: whether it is that.
        error: why there are no numbers; empty if there are.
        cost: parameters, weights and operations.
        footprint: bytes on disk and in memory.
        timing: latency and load time.
        ratio: latency to that of the first model.
    """

    name: str
    int8: bool = False
    error: str = ""
    cost: Cost | None = None
    footprint: Footprint | None = None
    timing: Timing | None = None
    ratio: Ratio | None = None

    @property
    def zeros(self) -> float:
        """The share of zeros among the weights."""
        return 1 - self.cost.nonzero_weights / max(self.cost.weights, 1) if self.cost else 0.0

    def to_dict(self, batch: int) -> dict[str, Any]:
        """Return plain values; those that were not measured are None."""
        timing, footprint = self.timing, self.footprint
        costs = asdict(self.cost) if self.cost else {}
        return {
            "model": self.name,
            "int8": self.int8,
            "error": self.error or None,
            "latency_ms": {
                f"p{p}": getattr(timing, f"p{p}_ms") if timing else None for p in (50, 95, 99)
            },
            "samples_per_second": 1e3 * batch / timing.mean_ms if timing else None,
            "ratio": asdict(self.ratio) if self.ratio else None,
            "load_ms": timing.load_ms if timing else None,
            "peak_memory_bytes": footprint.peak_memory_bytes if footprint else None,
            "file_bytes": footprint.file_bytes if footprint else None,
            "zipped_bytes": footprint.zipped_bytes if footprint else None,
        } | {k: costs.get(k) for k in ("macs", "params", "weights", "nonzero_weights")}


@dataclass(frozen=True)
class Benchmark:
    """What was measured, and how; :meth:`to_dict` is the public JSON."""

    entries: tuple[Entry, ...]
    batch_size: int
    threads: int
    provider: str
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    rounds: int
    blocks: int
    disturbed: float
    settled: bool
    warnings: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """What a reader should know about the numbers."""
        return [
            f"{e.name}: {100 * e.zeros:.0f} % of the weights are zeros; zeros do not run faster "
            "in onnxruntime, they only compress"
            for e in self.entries
            if e.zeros >= ZEROS and not e.int8
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        result: dict[str, Any] = plain(
            {
                "models": [e.to_dict(self.batch_size) for e in self.entries],
                "batch_size": self.batch_size,
                "inputs": {k: {"dtype": d, "shape": s} for k, (d, s) in self.inputs.items()},
                "threads": self.threads,
                "provider": self.provider,
                "onnxruntime": runtime_version(),
                "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
                "rounds": self.rounds,
                "sessions": self.blocks,
                "disturbed": self.disturbed,
                "settled": self.settled,
                "remarks": self.remarks,
                "warnings": self.warnings,
            }
        )
        return result

    def to_json(self) -> str:
        """Return the benchmark as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def summary(self) -> RenderableType:
        """Return a table for the terminal, one column for each model."""
        from rich.console import Group as Lines
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for entry in self.entries:
            table.add_column(entry.name, justify="right", overflow="fold")
        columns = [_column(e, e.to_dict(self.batch_size)) for e in self.entries]
        for title in columns[0]:
            table.add_row(title, *(c[title] for c in columns))
        number = str(self.threads or "chosen by onnxruntime")
        lines = [
            f"batch size {self.batch_size}, threads: {number}, {self.provider}, onnxruntime "
            f"{runtime_version()}; {self.rounds} rounds, sessions made {self.blocks} times",
            "ratio: latency to the first model's, with its 95 % interval; peak memory: what "
            "loading and running add to a fresh process",
            *self.remarks,
            *(f"{e.name}: {e.error}" for e in self.entries if e.error),
        ]
        return Lines(table, *lines)


def _column(entry: Entry, values: dict[str, Any]) -> dict[str, str]:
    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    ratio, latency = entry.ratio, values["latency_ms"]
    memory = values["peak_memory_bytes"]
    return {
        "latency ms, p50": show(latency["p50"], ".3f"),
        "p95": show(latency["p95"], ".3f"),
        "p99": show(latency["p99"], ".3f"),
        "ratio": f"{ratio.value:.3f} ({ratio.low:.3f}-{ratio.high:.3f})" if ratio else "-",
        "samples/s": show(values["samples_per_second"], ",.0f"),
        "load ms": show(values["load_ms"], ".1f"),
        "peak memory MB": show(memory and memory / 1e6, ".1f"),
        **{
            key.replace("_", " "): show(values[key], ",")
            for key in ("file_bytes", "zipped_bytes", "macs", "params", "weights")
        },
        "nonzero weights": show(values["nonzero_weights"], ","),
    }


@dataclass(frozen=True)
class _Candidate:
    """A model that was loaded and ran."""

    name: str
    model: Model
    cost: Cost
    int8: bool = False


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
        progress: see :data:`~onnxprune.holdout.Progress`.

    Raises:
        OnnxpruneError: if a setting is out of its range.
        ModelError: if a model cannot be read or run, takes other inputs than the first, or if
            onnxruntime lacks the provider.
    """
    paths = [Path(m) for m in models]
    _check_settings(paths, batch_size, threads, seconds, rounds, seed)
    check_provider(provider)
    loaded = [graph.load(path) for path in paths]
    for path, model in zip(paths, loaded, strict=True):
        _check_inputs(paths[0], loaded[0].inputs, path, model.inputs)
    strictest = min(loaded, key=lambda m: sum(map(_free_sizes, m.inputs)))
    shapes = observe_inputs(
        strictest, None, seed=seed, threads=threads, batch=batch_size, dims=dims
    )
    feeds = shapes.feeds[0]
    candidates = [
        _try(str(path), model, feeds, threads, provider)
        for path, model in zip(paths, loaded, strict=True)
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
                entry = _try(name, quantised, feeds, threads, provider, int8=True)
                candidates.insert(1, entry)
            except ModelError as error:
                failed = Entry(name, int8=True, error=str(error))
        measured = compare(
            [c.model.files[0] for c in candidates],
            feeds,
            threads=threads,
            provider=provider,
            seconds=seconds,
            rounds=rounds,
            seed=seed,
            progress=progress,
        )
        advance = progress("memory", len(candidates))
        entries = []
        for k, candidate in enumerate(candidates):
            files = candidate.model.files
            footprint = measure_footprint(files, feeds, threads=threads, provider=provider)
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
    name: str, model: Model, feeds: Feeds, threads: int, provider: str, *, int8: bool = False
) -> _Candidate:
    """Run a model once, and count what it costs."""
    try:
        Session(model.files[0], threads=threads, provider=provider, timed=True).run(feeds)
        shapes = observe(model, feeds, threads=threads)
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
