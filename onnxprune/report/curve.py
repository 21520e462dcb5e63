"""Curve: the accuracy of one model pruned to many budgets of operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.report.plain import Result, plain


@dataclass(frozen=True)
class Point:
    """One model of a sweep.

    Attributes:
        requested: the operations that may remain, as a fraction of the original's.
        macs: those that do, likewise.
        params: parameters, likewise.
        accuracy: top-1 on the *report* samples, as a fraction; None without any.
        standard_error: of the accuracy, as a fraction; None without samples.
        loss: mean cross-entropy on the same samples, in nats; None without samples.
    """

    requested: float
    macs: float
    params: float
    accuracy: float | None
    standard_error: float | None
    loss: float | None


@dataclass(frozen=True)
class Curve(Result):
    """Accuracy against operations.

    Attributes:
        model: path of the original.
        points: the original first, then ever smaller models.
        warnings: which ratios could not be reached, and what else the user should know.
    """

    model: str
    points: Sequence[Point]
    warnings: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the public JSON."""
        return {name: plain(getattr(self, name)) for name in ("model", "points", "warnings")}

    def plot(self, path: Path) -> None:
        """Draw the curve into a file, accuracy in % against operations in % of the original's.

        Args:
            path: where to write; its ending (PNG, SVG, PDF) says in which format.

        Raises:
            OutputError: if matplotlib is not there, or the file cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise OutputError(
                f"{path}: plots need matplotlib: pip install 'onnxprune[plot]'"
            ) from None
        known = [p for p in self.points if p.accuracy is not None]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.errorbar(
            [100 * p.macs for p in known],
            [100 * (p.accuracy or 0.0) for p in known],
            yerr=[100 * (p.standard_error or 0.0) for p in known],
            marker="o",
            capsize=3,
        )
        axes.set_xlabel("multiply-accumulates, % of the original")
        axes.set_ylabel("top-1 accuracy, %")
        axes.set_title(Path(self.model).name, parse_math=False)
        axes.grid(alpha=0.3)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: the plot cannot be written: {error}") from None
