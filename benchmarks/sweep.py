"""Prune every model of a folder without samples and tabulate what came of it.

Usage: python benchmarks/sweep.py FOLDER [FOLDER ...] [--sparsity 0.3 0.5] [--markdown FILE]

Each model is pruned with `--random-inputs --metric magnitude --recover none --mode channels`. A
row says whether the result is valid (written and verified), the verified error, what was
achieved, how much of the weights sits in prunable channels, and the seconds of each stage.
Where a request cannot be reached, the best achievable is pruned instead, and counted as short.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune import BudgetError, OnnxpruneError, inspect, prune
from onnxprune.report import Report

SETTINGS = {"mode": "channels", "metric": "magnitude", "recover": "none", "random_inputs": True}


@dataclass
class Row:
    """The outcome of one model at one sparsity."""

    model: str
    requested: float
    outcome: str = "failed"
    achieved: float = 0.0
    error: float = float("nan")
    prunable: float = 0.0
    nodes: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def cells(self) -> list[str]:
        """Return the table cells."""
        seconds = [f"{self.timings.get(k, 0.0):.2f}" for k in ("observe", "trace", "rewrite")]
        return [
            self.model, f"{self.requested:g}", self.outcome, f"{self.achieved:.3f}",
            f"{self.error:.1e}", f"{self.prunable:.2f}", *seconds, self.note[:120],
        ]  # fmt: skip


HEAD = ["model", "requested", "outcome", "achieved", "max rel. error", "prunable share",
        "observe s", "trace s", "rewrite s", "note"]  # fmt: skip


def attempt(path: Path, sparsity: float, prunable: float) -> Row:
    """Prune one model; a refusal is an outcome, any other exception a crash."""
    row = Row(path.stem, sparsity, prunable=prunable)
    try:
        try:
            report = prune(path, sparsity=sparsity, **SETTINGS).report
            row.outcome = "verified"
        except BudgetError as error:
            row.note = str(error)
            best = float(re.findall(r"best achievable is (\d\.\d+)", str(error))[0])
            if best <= 0:
                row.outcome = "refused"
                return row
            report = prune(path, sparsity=best, **SETTINGS).report
            row.outcome = "short"
        fill(row, report)
    except OnnxpruneError as error:
        row.outcome, row.note = "refused", str(error)
    except Exception as error:
        row.outcome, row.note = "CRASH", f"{type(error).__name__}: {error}"
    return row


def fill(row: Row, report: Report) -> None:
    """Copy what the table shows from a report."""
    row.achieved, row.error = report.achieved, report.verification.max_rel_error
    row.timings = dict(report.timings)


def prunable_share(path: Path) -> float:
    """Return the share of weights in prunable channels, 0 if the model is refused."""
    try:
        return float(inspect(path).to_dict()["prunable"]["weights"])
    except Exception:
        return 0.0


def main() -> None:
    """Sweep and print a table and a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--markdown", type=Path)
    a = parser.parse_args()
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    rows = []
    start = time.perf_counter()
    for path in sorted(p for folder in a.folders for p in folder.glob("*.onnx")):
        share = prunable_share(path)
        for sparsity in a.sparsity:
            rows.append(attempt(path, sparsity, share))
            lines.append(f"| {' | '.join(rows[-1].cells())} |")
            print(lines[-1], flush=True)
    lines += ["", *summary(rows, a.sparsity)]
    lines.append(f"{time.perf_counter() - start:.0f} s in all.")
    print("\n".join(lines[-len(a.sparsity) - 2 :]))
    if a.markdown:
        a.markdown.write_text("\n".join(lines) + "\n")


def summary(rows: list[Row], sparsities: list[float]) -> list[str]:
    """Return a sentence for each sparsity."""
    sentences = []
    for sparsity in sparsities:
        own = [r for r in rows if r.requested == sparsity]
        near = sum(r.achieved >= 0.95 * sparsity and r.error < 1e-3 for r in own)
        counts = {k: sum(r.outcome == k for r in own) for k in ("verified", "short", "refused")}
        crashes = sum(r.outcome not in counts for r in own)
        worst = max((r.error for r in own if r.error == r.error), default=0.0)
        sentences.append(
            f"At {sparsity:g}: {len(own)} models, {near} reach at least 95 % of the request with "
            f"an error below 1e-3 ({counts['verified']} in full, {counts['short']} short, "
            f"{counts['refused']} refused, {crashes} crashed or wrong); largest error {worst:.1e}."
        )
    return sentences


if __name__ == "__main__":
    main()
