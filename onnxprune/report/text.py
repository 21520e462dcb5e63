"""Text: results as tables and lines for people, one function for each kind of result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import singledispatch
from io import StringIO
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from onnxprune.measure.accuracy import Accuracy, Drop
from onnxprune.measure.entropy import Activity
from onnxprune.plans.budgets import KINDS
from onnxprune.printable import console
from onnxprune.report.benchmark import Benchmark, Entry
from onnxprune.report.curve import Curve
from onnxprune.report.inspection import Inspection
from onnxprune.report.report import Report, Side
from onnxprune.structure.structure import Frozen

PARTS, FROZEN = 4, 12
"""How many parts that left, and frozen outputs, a report names."""


@singledispatch
def shown(result: object) -> RenderableType:
    """Return a result as something that rich can print.

    Raises:
        TypeError: if no function here is registered for its type.
    """
    raise TypeError(f"there is no text for a {type(result).__name__}")


def to_text(result: object) -> str:
    """Return a result as the lines of a text file; raises as :func:`shown` does."""
    file = StringIO()
    console(file, styled=False).print(shown(result))
    return file.getvalue()


# -- a pruned model --------------------------------------------------------------------------


@shown.register
def _report(report: Report) -> RenderableType:
    parts: list[RenderableType] = [_costs(report.before, report.after)]
    if report.request["lossless"]:
        return Group(*parts, Text(_lossless(report)))
    parts += _sentences(report)
    if report.frozen:
        parts.append(_frozen_outputs(report.frozen))
    return Group(*parts)


def _costs(before: Side, after: Side) -> Table:
    rows = []
    for key in ("params", "weights", "nonzero_weights", "macs", "bytes"):
        old, new = getattr(before.cost, key), getattr(after.cost, key)
        ratio = f"{new / old:.3f}" if old else "-"
        rows.append((key.replace("_", " "), f"{old:,}", f"{new:,}", ratio))
    if before.accuracy and after.accuracy:
        gain = f"{100 * (after.accuracy.value - before.accuracy.value):+.2f}"
        old, new = (f"{_percent(a)} %" for a in (before.accuracy, after.accuracy))
        rows.append(("accuracy", old, new, gain))
    return _table([*_left(""), *_right("before", "after", "ratio")], rows)


def _sentences(report: Report) -> Iterator[str]:
    verified, drop, split = report.verification, report.drop, report.split
    yield f"{_wanted(report)} ({report.request['mode']})"
    yield (
        f"verified: relative error {verified.max_rel_error:.1e} on {verified.samples} samples "
        "against the masked original"
    )
    if report.removals:
        yield _parts_that_left(report)
    if report.clean_up:
        yield report.clean_up.summary()
    if speed := report.speed:
        yield (
            f"latency: {speed.value:.3f} of the original's ({speed.low:.3f} to {speed.high:.3f}), "
            f"measured on this machine at batch {speed.batch}"
        )
    if split["zeros"] > 0:
        whole = "parts and channels" if report.removals else "channels"
        yield (
            f"{100 * split['channels']:.1f} % of the weights left with {whole}, "
            f"{100 * split['zeros']:.1f} % became zeros; zeros do not run faster in "
            "onnxruntime, they compress"
        )
    if drop:
        yield f"accuracy drop on the {drop.samples} samples that decide: {_percent(drop)} points"


def _wanted(report: Report) -> str:
    """Say what was asked for and what was reached."""
    request, kinds = report.request, KINDS.values()
    kind = next((k for k in kinds if report.requested(k.name) is not None), None)
    if kind is None and request["layers"] is not None:
        return f"layers: requested {request['layers']:g}, achieved {len(report.removals):,}"
    if kind is None:
        return f"macs: as few as a drop of {request['max_drop']:g} allows"
    value = kind.achieved(report.found)
    reply = "not measured; see onnxprune bench" if value is None else f"achieved {kind.show(value)}"
    return f"{kind.name}: requested {report.requested(kind.name):g}, {reply}"


def _parts_that_left(report: Report) -> str:
    before, after, parts = report.before.cost, report.after.cost, report.removals
    names = ", ".join(r.name for r in parts[:PARTS])
    more = f" and {len(parts) - PARTS} more" if len(parts) > PARTS else ""
    return (
        f"whole parts that left: {len(parts)} ({names}{more}); "
        f"layers {before.layers} -> {after.layers}, "
        f"longest path {before.longest_path} -> {after.longest_path} nodes"
    )


def _lossless(report: Report) -> str:
    text, verified = report.clean_up.summary(), report.verification
    if not report.clean_up:
        return f"{text}; the model is as it was"
    known = "on the samples, not in general" if report.request["empirical"] else "exactly"
    return (
        f"{text}\nthe outputs are the same {known}: relative error "
        f"{verified.max_rel_error:.1e} on {verified.samples} samples"
    )


def _frozen_outputs(frozen: Sequence[Frozen]) -> Table:
    rows = [(f.tensor, str(f.channels), f.node, f.reason) for f in frozen[:FROZEN]]
    if len(frozen) > FROZEN:
        rows.append((f"... and {len(frozen) - FROZEN} more (see --report)", "", "", ""))
    columns = _left("tensor", "channels", "because of", "which")
    return _table(columns, rows, f"frozen outputs: {len(frozen)}")


# -- what can be pruned ----------------------------------------------------------------------


@shown.register
def _inspection(found: Inspection) -> RenderableType:
    cost, structure = found.cost, found.structure
    facts = (
        f"{cost.params:,} parameters, {cost.weights:,} weights, {cost.macs:,} MACs a sample, "
        f"{cost.bytes:,} bytes\n{int(structure.prunable.sum())} units in "
        f"{len(structure.groups)} groups can leave; with them would leave "
        f"{100 * found.prunable_weights:.1f} % of the weights and "
        f"{100 * found.prunable_macs:.1f} % of the MACs"
    )
    parts: list[RenderableType] = [Text(facts), _groups(found)]
    if structure.frozen:
        parts.append(_frozen_layers(found))
    if found.removals:
        rows = [(r.name, r.kind, str(len(r.layers))) for r in found.removals]
        columns = [*_left("part", "kind"), *_right("layers")]
        title = "\nparts that can leave as a whole (--mode depth)"
        parts.append(_table(columns, rows, title))
    if found.rectifiers:
        parts.append(_rectifiers(found.rectifiers))
    elif found.rectifiers is not None:
        parts.append(Text("\nthe model has no rectifiers"))
    return Group(*parts)


def _groups(found: Inspection) -> Table:
    columns = [*_left("group"), *_right("units", "coupled layers")]
    trials = {s.group: s for s in found.sensitivities}
    rows = []
    if trials:
        columns += _right("outputs move (nats) without so many")
    for group in found.structure.groups:
        row = [group.name, str(len(group.units)), str(len(group.nodes) + len(group.along))]
        if trials:
            own = trials.get(group.name)
            pairs = zip(own.removed, own.divergence, strict=True) if own else ()
            row.append(", ".join(f"{n}: {d:.2g}" for n, d in pairs))
        rows.append(row)
    return _table(columns, rows, "\ngroups")


def _frozen_layers(found: Inspection) -> Table:
    rows = []
    for r in found.structure.frozen_by_reason():
        more = f" and {len(r.nodes) - 1} more" if len(r.nodes) > 1 else ""
        numbers = (str(r.layers), f"{r.channels:,}", f"{r.weights:,}")
        rows.append((*numbers, r.reason, r.nodes[0] + more))
    columns = [*_right("layers", "channels", "weights"), *_left("because it", "at")]
    return _table(columns, rows, "\nfrozen")


def _rectifiers(found: Sequence[Activity]) -> Table:
    rows = []
    for a in (activity.to_dict() for activity in found):
        counts = [str(a[k]) for k in ("always_on", "always_off")]
        shares = [f"{a['entropy']:.3f}", f"{100 * a['on']:.1f} %"]
        rows.append((a["node"], a["op_type"], str(a["neurons"]), *shares, *counts))
    numbers = _right("neurons", "entropy", "on", "always on", "always off")
    title = f"\nrectifiers on {found[0].samples} samples"
    return _table([*_left("node", "operator"), *numbers], rows, title)


# -- many budgets, accuracy, many models -----------------------------------------------------


@shown.register
def _curve(curve: Curve) -> RenderableType:
    rows = []
    for p in curve.points:
        accuracy = "-"
        if p.accuracy is not None:
            accuracy = f"{100 * p.accuracy:.2f} ± {100 * (p.standard_error or 0.0):.2f} %"
        loss = "-" if p.loss is None else f"{p.loss:.4f}"
        rows.append((f"{p.macs:.3f}", f"{p.params:.3f}", accuracy, loss))
    return _table(_right("macs", "params", "accuracy", "loss"), rows)


@shown.register
def _accuracy(accuracy: Accuracy) -> RenderableType:
    text = f"accuracy {_percent(accuracy)} % (loss {accuracy.loss:.4f}, "
    return f"{text}{accuracy.samples} samples)"


@shown.register
def _benchmark(found: Benchmark) -> RenderableType:
    columns = [_figures(e, e.to_dict(found.batch_size)) for e in found.entries]
    rows = [(title, *(c[title] for c in columns)) for title in columns[0]]
    number = str(found.threads or "chosen by onnxruntime")
    lines = [
        f"batch size {found.batch_size}, threads: {number}, {found.provider}, onnxruntime "
        f"{found.onnxruntime}; {found.measured.rounds} rounds, sessions made "
        f"{found.measured.blocks} times",
        "ratio: latency to the first model's, with its 95 % interval; peak memory: what "
        "loading and running add to a fresh process",
        *found.remarks,
        *(f"{e.name}: {e.error}" for e in found.entries if e.error),
    ]
    return Group(_table([*_left(""), *_right(*(e.name for e in found.entries))], rows), *lines)


def _figures(entry: Entry, values: dict[str, Any]) -> dict[str, str]:
    """Return the column of a model, by the title of the row; "-" is what was not measured."""

    def figure(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    ratio, latency = entry.ratio, values["latency_ms"]
    memory = values["peak_memory_bytes"]
    counts = ("file_bytes", "zipped_bytes", "macs", "params", "weights", "nonzero_weights")
    return {
        "latency ms, p50": figure(latency["p50"], ".3f"),
        "p95": figure(latency["p95"], ".3f"),
        "p99": figure(latency["p99"], ".3f"),
        "ratio": f"{ratio.value:.3f} ({ratio.low:.3f}-{ratio.high:.3f})" if ratio else "-",
        "samples/s": figure(values["samples_per_second"], ",.0f"),
        "load ms": figure(values["load_ms"], ".1f"),
        "peak memory MB": figure(memory and memory / 1e6, ".1f"),
        **{key.replace("_", " "): figure(values[key], ",") for key in counts},
    }


# -- what they share -------------------------------------------------------------------------


def _table(
    columns: Iterable[Column], rows: Iterable[Sequence[str]], title: str | None = None
) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _percent(share: Accuracy | Drop) -> str:
    return f"{100 * share.value:.2f} ± {100 * share.standard_error:.2f}"


def _left(*names: str) -> list[Column]:
    return [Column(name, overflow="fold") for name in names]


def _right(*names: str) -> list[Column]:
    return [Column(name, overflow="fold", justify="right") for name in names]
