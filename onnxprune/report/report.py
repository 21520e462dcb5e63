"""Report: what was asked, what was done and what it cost, as JSON and for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from onnxprune.clean.clean_up import CleanUp
from onnxprune.measure.accuracy import Accuracy, Drop
from onnxprune.measure.divergence import Sensitivity
from onnxprune.measure.entropy import Activity
from onnxprune.model.cost import Cost
from onnxprune.report.plain import plain
from onnxprune.rewrite.verify import Verification
from onnxprune.structure.removals import Removal
from onnxprune.structure.structure import Frozen
from onnxprune.timing.speed import Speed

if TYPE_CHECKING:
    from rich.console import RenderableType


SHOWN = 4
"""Parts that left which the summary names."""


@dataclass(frozen=True)
class Side:
    """Costs and accuracy of one model."""

    cost: Cost
    accuracy: Accuracy | None

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of the report's ``before`` and ``after``."""
        accuracy = self.accuracy
        return asdict(self.cost) | {
            "accuracy": accuracy.value if accuracy else None,
            "accuracy_standard_error": accuracy.standard_error if accuracy else None,
            "accuracy_samples": accuracy.samples if accuracy else None,
            "loss": accuracy.loss if accuracy else None,
            "accuracy_per_class": list(accuracy.per_class) if accuracy else None,
        }


@dataclass(frozen=True)
class Layer:
    """A node with weights, before and after."""

    node: str
    op_type: str
    tensor: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    nonzero_before: int
    nonzero_after: int


@dataclass(frozen=True)
class GroupChange:
    """How many units of a group stayed, and what removing some did in trials."""

    name: str
    nodes: tuple[str, ...]
    units: int
    kept: int
    sensitivity: Sensitivity | None = None


@dataclass(frozen=True)
class Report:
    """Everything a run reports; :meth:`to_dict` is the public JSON."""

    model: Mapping[str, Any]
    request: Mapping[str, Any]
    data: Mapping[str, Any]
    before: Side
    after: Side
    achieved: float
    verification: Verification
    recovery: Mapping[str, Any]
    clean_up: CleanUp
    rectifiers: Sequence[Activity] | None
    groups: Sequence[GroupChange]
    frozen: Sequence[Frozen]
    removals: Sequence[Removal]
    layers: Sequence[Layer]
    timings: Mapping[str, float]
    warnings: Sequence[str] = field(default=())
    speed: Speed | None = None
    drop: Drop | None = None
    gate_met: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values; NaN becomes None."""
        values = {
            "model": dict(self.model),
            "request": dict(self.request),
            "data": dict(self.data),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "sparsity": {"requested": self.request["sparsity"], "achieved": self.achieved},
            **{name: self._ratio(name) for name in ("params", "macs")},
            "latency": {
                "requested": self.request["latency"],
                "achieved": self.speed.value if self.speed else None,
                "low": self.speed.low if self.speed else None,
                "high": self.speed.high if self.speed else None,
                "batch": self.speed.batch if self.speed else None,
            },
            "size": {"requested": self.request["size"], "achieved": self.after.cost.bytes},
            "split": self.split,
            "quality": {
                "met": self.gate_met,
                "drop": self.drop.value if self.drop else None,
                "standard_error": self.drop.standard_error if self.drop else None,
                "samples": self.drop.samples if self.drop else 0,
            },
            "verification": asdict(self.verification),
            "recovery": dict(self.recovery),
            "clean_up": self.clean_up.to_dict(),
            "rectifiers": None
            if self.rectifiers is None
            else [a.to_dict() for a in self.rectifiers],
            "groups": [asdict(g) for g in self.groups],
            "frozen": [asdict(f) for f in self.frozen],
            "removals": [
                {"name": r.name, "kind": r.kind, "layers": r.layers} for r in self.removals
            ],
            "layers": [asdict(layer) for layer in self.layers],
            "timings": {k: round(v, 4) for k, v in self.timings.items()},
            "warnings": list(self.warnings),
        }
        result: dict[str, Any] = plain(values)
        return result

    @property
    def split(self) -> dict[str, float]:
        """The shares of the original's weights that left with channels, and that became zero."""
        total = max(self.before.cost.weights, 1)
        zeros = [s.cost.weights - s.cost.nonzero_weights for s in (self.before, self.after)]
        return {
            "channels": 1 - self.after.cost.weights / total,
            "zeros": max(zeros[1] - zeros[0], 0) / total,
        }

    def _ratio(self, name: str) -> dict[str, float | None]:
        before, after = (getattr(side.cost, name) for side in (self.before, self.after))
        return {"requested": self.request[name], "achieved": after / max(before, 1)}

    def _shorter(self) -> str:
        """Say what left as a whole."""
        before, after = self.before.cost, self.after.cost
        names = ", ".join(r.name for r in self.removals[:SHOWN])
        more = f" and {len(self.removals) - SHOWN} more" if len(self.removals) > SHOWN else ""
        return (
            f"whole parts that left: {len(self.removals)} ({names}{more}); "
            f"layers {before.layers} -> {after.layers}, "
            f"longest path {before.longest_path} -> {after.longest_path} nodes"
        )

    def _wanted(self) -> str:
        """Say what was asked for and what was reached."""
        reached = {
            "sparsity": self.achieved,
            "params": self._ratio("params")["achieved"],
            "macs": self._ratio("macs")["achieved"],
            "latency": self.speed.value if self.speed else None,
            "size": self.after.cost.bytes,
            "layers": len(self.removals),
        }
        kind = next((k for k in reached if self.request[k] is not None), None)
        if kind is None:
            return f"macs: as few as a drop of {self.request['max_drop']:g} allows"
        value = reached[kind]
        if value is None:
            shown = "not measured; see onnxprune bench"
        else:
            shown = f"achieved {value:,}" if kind in ("size", "layers") else f"achieved {value:.4f}"
        return f"{kind}: requested {self.request[kind]:g}, {shown}"

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def summary(self) -> RenderableType:
        """Return a summary for the terminal."""
        from rich.console import Group as Lines
        from rich.text import Text

        parts: list[RenderableType] = [_costs(self.before, self.after)]
        if self.request["lossless"]:
            return Lines(*parts, Text(self._lossless()))
        achieved = f"{self._wanted()} ({self.request['mode']})"
        proof = (
            f"verified: relative error {self.verification.max_rel_error:.1e} on "
            f"{self.verification.samples} samples against the masked original"
        )
        parts += [Text(achieved), Text(proof)]
        if self.removals:
            parts.append(self._shorter())
        if self.clean_up:
            parts.append(Text(self.clean_up.summary()))
        if self.speed:
            parts.append(
                Text(
                    f"latency: {self.speed.value:.3f} of the original's ({self.speed.low:.3f} to "
                    f"{self.speed.high:.3f}), measured on this machine at batch {self.speed.batch}"
                )
            )
        if self.split["zeros"] > 0:
            whole = "parts and channels" if self.removals else "channels"
            parts.append(
                Text(
                    f"{100 * self.split['channels']:.1f} % of the weights left with {whole}, "
                    f"{100 * self.split['zeros']:.1f} % became zeros; zeros do not run faster in "
                    "onnxruntime, they compress"
                )
            )
        if self.drop:
            parts.append(
                Text(
                    f"accuracy drop on the {self.drop.samples} samples that decide: "
                    f"{100 * self.drop.value:.2f} ± {100 * self.drop.standard_error:.2f} points"
                )
            )
        if self.frozen:
            parts.append(frozen_table(self.frozen))
        return Lines(*parts)

    def _lossless(self) -> str:
        text = self.clean_up.summary()
        if not self.clean_up:
            return f"{text}; the model is as it was"
        known = "on the samples, not in general" if self.request["empirical"] else "exactly"
        return (
            f"{text}\nthe outputs are the same {known}: relative error "
            f"{self.verification.max_rel_error:.1e} on {self.verification.samples} samples"
        )


def _costs(before: Side, after: Side) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("", "before", "after", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    for key in ("params", "weights", "nonzero_weights", "macs", "bytes"):
        old, new = getattr(before.cost, key), getattr(after.cost, key)
        ratio = f"{new / old:.3f}" if old else "-"
        table.add_row(key.replace("_", " "), f"{old:,}", f"{new:,}", ratio)
    if before.accuracy and after.accuracy:
        table.add_row("accuracy", *(_percent(s.accuracy) for s in (before, after)),
                      f"{100 * (after.accuracy.value - before.accuracy.value):+.2f}")  # fmt: skip
    return table


def _percent(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    return f"{100 * accuracy.value:.2f} ± {100 * accuracy.standard_error:.2f} %"


def frozen_table(frozen: Sequence[Frozen], most: int = 12) -> RenderableType:
    """Return a table of the channels that cannot be pruned, and why."""
    from rich.table import Table

    title = f"frozen outputs: {len(frozen)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("tensor", "channels", "because of", "which"):
        table.add_column(name, overflow="fold")
    for item in frozen[:most]:
        table.add_row(item.tensor, str(item.channels), item.node, item.reason)
    if len(frozen) > most:
        table.add_row(f"... and {len(frozen) - most} more (see --report)", "", "", "")
    return table
