"""Benchmark: what models cost to run, store and load, side by side."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.model.cost import Cost
from onnxprune.model.session import runtime_version
from onnxprune.report.plain import Result, plain
from onnxprune.timing.footprint import Footprint
from onnxprune.timing.latency import Comparison, Ratio, Timing

ZEROS = 0.1
"""The share of zeros among the weights from which a reader may expect something of them."""


@dataclass(frozen=True)
class Entry:
    """A model of a benchmark; what was not measured is None.

    Attributes:
        name: its file as it was given; "int8" after it for the quantised version.
        int8: whether it is that.
        error: why there are no numbers; empty if there are.
        cost: parameters, weights and operations.
        footprint: bytes on disk and in memory.
        timing: latency and load time, in milliseconds.
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
        """Return plain values; those that were not measured are None.

        Args:
            batch: how many samples a run had.
        """
        timing = self.timing
        return {
            "model": self.name,
            "int8": self.int8,
            "error": self.error or None,
            "latency_ms": {p: getattr(timing, f"{p}_ms", None) for p in ("p50", "p95", "p99")},
            "samples_per_second": 1e3 * batch / timing.mean_ms if timing else None,
            "ratio": asdict(self.ratio) if self.ratio else None,
            "load_ms": timing.load_ms if timing else None,
            **{k: getattr(self.footprint, k, None)
               for k in ("peak_memory_bytes", "file_bytes", "zipped_bytes")},
            **{k: getattr(self.cost, k, None)
               for k in ("macs", "params", "weights", "nonzero_weights")},
        }  # fmt: skip


@dataclass(frozen=True)
class Benchmark(Result):
    """What was measured, and how.

    Attributes:
        entries: one for each model, in the order in which they were given; int8 is second.
        batch_size: samples of a run.
        threads: intra-operator threads; 0 where onnxruntime chose.
        provider: the execution provider.
        inputs: dtype and shape of each input, by its name.
        measured: the latencies, of the models that could be run.
        warnings: what makes the numbers less certain than they look, or other than asked for.
    """

    entries: tuple[Entry, ...]
    batch_size: int
    threads: int
    provider: str
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    measured: Comparison
    warnings: tuple[str, ...]

    @property
    def onnxruntime(self) -> str:
        """The version of onnxruntime that ran the models."""
        return runtime_version()

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
        """Return plain values, the public JSON."""
        result: dict[str, Any] = plain(
            {
                "models": [e.to_dict(self.batch_size) for e in self.entries],
                "batch_size": self.batch_size,
                "inputs": {k: {"dtype": d, "shape": s} for k, (d, s) in self.inputs.items()},
                "threads": self.threads,
                "provider": self.provider,
                "onnxruntime": self.onnxruntime,
                "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
                "rounds": self.measured.rounds,
                "sessions": self.measured.blocks,
                "disturbed": self.measured.disturbed,
                "settled": self.measured.settled,
                "remarks": self.remarks,
                "warnings": self.warnings,
            }
        )
        return result
