"""Report: the request, the plan and its proof, and the costs before and after, as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.clean.clean_up import CleanUp
from onnxprune.measure.accuracy import Accuracy, Drop
from onnxprune.measure.divergence import Sensitivity
from onnxprune.measure.entropy import Activity
from onnxprune.model.cost import Cost
from onnxprune.plans.budgets import KINDS, Measured
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
    """How many units of a group stayed, and how the outputs moved without some in trials."""

    name: str
    nodes: tuple[str, ...]
    units: int
    kept: int
    sensitivity: Sensitivity | None = None


@dataclass(frozen=True)
class Report(Result):
    """Everything a run reports; :meth:`to_dict` is the public JSON.

    Attributes:
        model: path and hash of the original.
        request: what was asked for, by the name of the setting.
        data: how many samples served for what.
        before: the original.
        after: the result.
        verification: how far the result is from its reference.
        recovery: the steps that were tried to win accuracy back.
        clean_up: how many nodes and channels left because they computed nothing.
        rectifiers: how often each was on, and its entropy; None where that was not measured.
        groups: how many units of each group stayed.
        frozen: the tensors whose channels cannot leave, and why.
        removals: the parts that left as a whole.
        layers: the nodes with weights that original and result both have.
        timings: seconds that each stage took.
        warnings: what the user should know.
        speed: latency relative to the original's; None if it was not measured.
        drop: how much accuracy was lost on held-out samples; None without any.
        zeros: whether weights that became zero count as gone.
        gate_met: whether all quality gates are met.
    """

    model: Mapping[str, Any]
    request: Mapping[str, Any]
    data: Mapping[str, Any]
    before: Side
    after: Side
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
    zeros: bool = False
    gate_met: bool = True

    @property
    def found(self) -> Measured:
        """What came of the plan, as budgets look at it."""
        return Measured(self.before.cost, self.after.cost, self.speed, self.zeros)

    @property
    def achieved(self) -> float:
        """The fraction of the weights that left, or became zero where that was allowed."""
        return 1 - KINDS["sparsity"].measure(self.found)

    def requested(self, kind: str) -> float | None:
        """Return the budget of a kind that was asked for; None if there was none."""
        found: float | None = self.request.get(kind, self.request["other"].get(kind))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values; NaN becomes None."""
        budgets = {
            name: {"requested": self.requested(name), "achieved": kind.achieved(self.found)}
            for name, kind in KINDS.items()
        }
        interval = {name: getattr(self.speed, name, None) for name in ("low", "high", "batch")}
        values = {
            "model": self.model,
            "request": self.request,
            "data": self.data,
            "before": self.before,
            "after": self.after,
            **budgets,
            "latency": budgets["latency"] | interval,
            "split": self.split,
            "quality": {
                "met": self.gate_met,
                "drop": self.drop.value if self.drop else None,
                "standard_error": self.drop.standard_error if self.drop else None,
                "samples": self.drop.samples if self.drop else 0,
            },
            "verification": self.verification,
            "recovery": self.recovery,
            "clean_up": self.clean_up,
            "rectifiers": self.rectifiers,
            "groups": self.groups,
            "frozen": self.frozen,
            "removals": [
                {"name": r.name, "kind": r.kind, "layers": r.layers} for r in self.removals
            ],
            "layers": self.layers,
            "timings": {k: round(v, 4) for k, v in self.timings.items()},
            "warnings": self.warnings,
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
