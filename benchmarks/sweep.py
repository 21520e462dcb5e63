"""Prune every model of a folder without samples and tabulate what came of it.

Usage: python benchmarks/sweep.py FOLDER [FOLDER ...] [--sparsity 0.3 0.5] [--markdown FILE]
       [--allow-inexact]

Each model is planned and pruned with `--random-inputs --metric magnitude --recover none --mode
channels`. A row says whether the result is valid (written and verified), the verified error, what
was achieved, and the seconds of each stage; where it fell short, how much of the weights sits in
prunable channels. Where a request cannot be reached, the best achievable is pruned instead, and
counted as short.

What the product says is not taken for granted: each result runs on other data, with another batch
and with other sizes of every dynamic axis, wherever the original does, and must equal the original
with the removed channels times zero as the mask oracle of the tests builds it: shapes, types,
finite values; both without the rounding of quantised activations. With `--allow-inexact`, and
where integer operators are pruned as float ones, that does not hold, so values are not compared.
Its inputs are drawn here; only where none of them work are those of the product taken. What differs
is WRONG; where no inputs were found on which the original returns something finite, the result is
UNCHECKED.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from onnx import ModelProto, TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import oracle

from onnxprune import BudgetError, OnnxpruneError, PruningPlan, Request, apply, inspect, plan
from onnxprune.model import model as graph
from onnxprune.model.runner import Runner
from onnxprune.report.report import Report
from onnxprune.samples.inputs import observe_inputs

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

SETTINGS: dict[str, Any] = {
    "mode": "channels", "metric": "magnitude", "recover": "none", "random_inputs": True
}  # fmt: skip

SIZES = (24, 40, 64, 96, 32, 16, 128, 224, 160, 256, 48, 320, 8, 12, 1, 512, 576, 3, 16000, 24000)
"""Sizes of dynamic axes other than the batch, tried until the original runs with two."""

HIGHEST = (50, 2, 1)
"""Integers are drawn below these, until the original runs: they may be indices or masks."""


@dataclass
class Row:
    """The outcome of one model at one sparsity."""

    model: str
    requested: float
    outcome: str = "failed"
    achieved: float = 0.0
    error: float = float("nan")
    outside: float = float("nan")
    prunable: float = float("nan")
    timings: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def cells(self) -> list[str]:
        """Return the table cells."""
        seconds = [f"{self.timings.get(k, 0.0):.2f}" for k in ("observe", "trace", "rewrite")]
        return [
            self.model, f"{self.requested:g}", self.outcome, f"{self.achieved:.3f}",
            f"{self.error:.1e}", f"{self.outside:.1e}", f"{self.prunable:.2f}", *seconds,
            self.note.replace("|", "/").replace("\n", " ")[:200],
        ]  # fmt: skip


HEAD = ["model", "requested", "outcome", "achieved", "max rel. error", "outside error",
        "prunable share", "observe s", "trace s", "rewrite s", "note"]  # fmt: skip


def attempt(path: Path, sparsity: float, settings: dict[str, Any]) -> Row:
    """Prune one model; a refusal is an outcome, any other exception a crash."""
    row = Row(path.stem, sparsity)
    try:
        try:
            decided = plan(path, None, Request(sparsity=sparsity, **settings))
            row.outcome = "verified"
        except BudgetError as error:
            row.note = str(error)
            best = float(re.findall(r"best achievable is (\d(?:\.\d+)?)", str(error))[0])
            if best <= 0:
                row.outcome = "refused"
                return row
            decided = plan(path, None, Request(sparsity=best, **settings))
            row.outcome = "short"
        with mock.patch(
            "onnxprune.search.strategies.check_speed", return_value=None
        ):  # bench does that
            result = apply(path, decided)
        fill(row, result.report)
        row.note = row.note or result.missed
        check(row, path, decided, result.model)
    except OnnxpruneError as error:
        row.outcome, row.note = "refused", str(error)
    except Exception as error:
        row.outcome, row.note = "CRASH", f"{type(error).__name__}: {error}"
    return row


def fill(row: Row, report: Report) -> None:
    """Copy what the table shows from a report."""
    row.achieved, row.error = report.achieved, report.verification.max_rel_error
    row.timings = dict(report.timings)


def check(row: Row, path: Path, decided: PruningPlan, result: ModelProto) -> None:
    """Run a result where the original runs, and compare it with the masked original."""
    original = graph.load(path).proto
    dims = decided.request.dims if decided.request else {}
    seen = observe_inputs(graph.load(path), None, seed=0, runner=Runner(1), dims=dims)
    inputs = list(working_inputs(original)) or list(working(original, seen.feeds))
    if not inputs:
        row.outcome, row.note = "UNCHECKED", "no inputs found on which the original is finite"
        return
    reference = original
    exact = not (decided.request and decided.request.allow_inexact)
    if exact:
        t = oracle.traced(original, seen)
        exact = set(decided.keep) == {g.name for g in t.structure.groups}
        if exact:
            reference, _ = oracle.masked(t, decided.kept_labels(t.structure))
        else:  # integer operators, which are pruned as float ones
            row.note = row.note or "compared in shape only"
    limit = 1e-2 if has_half(original) else 1e-3
    reference, result = unrounded(reference), unrounded(result)
    row.outside = 0.0
    for feeds in inputs:
        try:
            expected, got = oracle.run(reference, feeds), oracle.run(result, feeds)
            found = oracle.error(expected, got)
        except AssertionError as error:
            found, row.note = float("inf"), str(error)
        if exact or found == float("inf"):
            row.outside = max(row.outside, found)
    if not row.outside <= limit:
        sizes = [{n: v.shape for n, v in feeds.items()} for feeds in inputs]
        row.outcome, row.note = "WRONG", f"error {row.outside:.2g} at {sizes}; {row.note}"


def working_inputs(proto: ModelProto) -> Iterator[Feeds]:
    """Yield inputs with which a model returns something finite, at two sizes where it has any."""
    free = any(k and not known(d) for v in proto.graph.input for k, d in axes(v))
    found = 0
    for size in SIZES if free else SIZES[:2]:
        drawn = (draw(proto, 1 + 2 * found, size, highest, size + found) for highest in HIGHEST)
        if (feeds := next(working(proto, drawn), None)) is not None:
            yield feeds
            found += 1
        if found == 2:
            return


def working(proto: ModelProto, candidates: Iterable[Feeds]) -> Iterator[Feeds]:
    """Yield those inputs with which a model returns something finite."""
    for feeds in candidates:
        try:
            outputs = oracle.run(proto, feeds)
        except AssertionError:
            continue
        if all(is_finite(v) for v in outputs) and any(v.size for v in outputs):
            yield feeds


def is_finite(value: Array) -> bool:
    """Whether all numbers are finite; texts are."""
    return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())


def axes(value: Any) -> list[tuple[int, Any]]:
    """Return the axes of an input or output."""
    return list(enumerate(value.type.tensor_type.shape.dim))


def known(dim: Any) -> bool:
    """Whether an axis has a fixed size."""
    return bool(dim.dim_value > 0)


def draw(proto: ModelProto, batch: int, size: int, highest: int, seed: int) -> Feeds:
    """Draw inputs; axes that bear a name have one size wherever it stands first."""
    rng = np.random.default_rng(seed)
    named: dict[str, int] = {}
    feeds: Feeds = {}
    for value in proto.graph.input:
        shape = []
        for k, dim in axes(value):
            wanted = size if k else batch
            free = named.setdefault(dim.dim_param, wanted) if dim.dim_param else wanted
            shape.append(dim.dim_value if known(dim) else free)
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        whole = dtype.kind in "iub"
        values = rng.integers(0, highest, shape) if whole else rng.standard_normal(shape)
        feeds[value.name] = np.asarray(values, dtype)
    return feeds


def unrounded(proto: ModelProto) -> ModelProto:
    """Leave out the rounding of activations: one that goes the other way is a whole step."""
    result = ModelProto()
    result.CopyFrom(proto)
    constants = {t.name for t in proto.graph.initializer}
    sources = {
        n.output[0]: n.input[0]
        for n in proto.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in constants
    }
    for node in result.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in sources:
            passed = helper.make_node("Identity", [sources[node.input[0]]], node.output, node.name)
            node.CopyFrom(passed)
    return result


def has_half(proto: ModelProto) -> bool:
    """Whether a model holds float16 numbers."""
    return any(t.data_type == TensorProto.FLOAT16 for t in proto.graph.initializer)


def prunable_share(path: Path, allow_inexact: bool) -> float:
    """Return the share of weights in prunable channels, 0 if the model is refused."""
    try:
        found = inspect(path, allow_inexact=allow_inexact).to_dict()
        return float(found["prunable"]["weights"])
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
    parser.add_argument("--allow-inexact", action="store_true")
    a = parser.parse_args()
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    rows = []
    start = time.perf_counter()
    settings = SETTINGS | {"allow_inexact": a.allow_inexact}
    files = (p for f in a.folders for p in ([f] if f.is_file() else f.glob("*.onnx")))
    for path in sorted(files):
        for sparsity in a.sparsity:
            rows.append(attempt(path, sparsity, settings))
            if rows[-1].outcome != "verified":
                rows[-1].prunable = prunable_share(path, a.allow_inexact)
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
    kinds = ("verified", "short", "refused", "CRASH", "WRONG", "UNCHECKED")
    for sparsity in sparsities:
        own = [r for r in rows if r.requested == sparsity]
        near = sum(r.achieved >= 0.95 * sparsity and r.outcome in kinds[:2] for r in own)
        counts = ", ".join(f"{sum(r.outcome == k for r in own)} {k}" for k in kinds)
        worst, outside = (
            max((e for e in errors if e == e), default=0.0)
            for errors in ([r.error for r in own], [r.outside for r in own])
        )
        sentences.append(
            f"At {sparsity:g}: {len(own)} models, {near} reach at least 95 % of the request "
            f"({counts}); largest error {worst:.1e}, on other data and sizes {outside:.1e}."
        )
    return sentences


if __name__ == "__main__":
    main()
