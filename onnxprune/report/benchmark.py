"""Benchmark: what models cost to run, store and load, side by side."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.model.cost import Cost
from onnxprune.model.session import (
    runtime_version,
)
from onnxprune.report.plain import plain
from onnxprune.timing.footprint import Footprint
from onnxprune.timing.latency import Ratio, Timing

if TYPE_CHECKING:
    from rich.console import RenderableType

ZEROS = 0.1
"""The share of zeros among the weights from which a reader may expect something of them."""


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
