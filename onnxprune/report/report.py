"""Report: what was asked, what was done and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.clean.clean_up import CleanUp
from onnxprune.measure.accuracy import Accuracy, Drop
from onnxprune.measure.divergence import Sensitivity
from onnxprune.measure.entropy import Activity
from onnxprune.model.cost import Cost
from onnxprune.report.plain import Result, plain
from onnxprune.rewrite.verify import Verification
from onnxprune.structure.removals import Removal
from onnxprune.structure.structure import Frozen
from onnxprune.timing.speed import Speed


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
class Report(Result):
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
            **{name: self.ratio(name) for name in ("params", "macs")},
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

    def ratio(self, name: str) -> dict[str, float | None]:
        """Return what may remain of a count and what does, as fractions of the original's."""
        before, after = (getattr(side.cost, name) for side in (self.before, self.after))
        return {"requested": self.request[name], "achieved": after / max(before, 1)}
