"""Inspection: what of a model can be pruned, and what each reason for freezing costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.measure.divergence import Sensitivity
from onnxprune.measure.entropy import Activity
from onnxprune.model.cost import Cost
from onnxprune.structure.removals import Removal
from onnxprune.structure.structure import Structure, Weight
from onnxprune.structure.unit_costs import counted, macs_of_weights, weights_kept

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Inspection:
    """What can be pruned from a model, and what its rectifiers do if there were samples.

    Attributes:
        structure: the traced model.
        cost: what it costs.
        node_macs: multiply-accumulates of each node for one sample.
        removals: what can leave as a whole.
        rectifiers: what its rectifiers did on samples; None without samples.
        sensitivities: what cutting each group does to the outputs; empty without samples.
        warnings: what the user should know of the samples and the model.
    """

    structure: Structure
    cost: Cost
    node_macs: Mapping[str, float]
    removals: Sequence[Removal] = ()
    rectifiers: Sequence[Activity] | None = None
    sensitivities: Sequence[Sensitivity] = ()
    warnings: Sequence[str] = ()

    @property
    def prunable_weights(self) -> float:
        """The share of the weights that would leave with all prunable channels."""
        total = max(self.cost.weights, 1)
        return sum(_size(w) * self._leaving(w) for w in counted(self.structure)) / total

    @property
    def prunable_macs(self) -> float:
        """The share of the multiply-accumulates that would leave with them."""
        total = max(self.cost.macs, 1)
        shares = macs_of_weights(self.structure, self.node_macs)
        parts = zip(shares, self.structure.weights, strict=True)
        return float(sum(macs * self._leaving(weight) for macs, weight in parts)) / total

    def _leaving(self, weight: Weight) -> float:
        kept = self.structure.units.keep(~self.structure.prunable)
        return 1 - weights_kept(weight, kept) / max(_size(weight), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: costs, what is prunable, groups, and what is frozen."""
        return {
            "cost": asdict(self.cost),
            "prunable": {"weights": self.prunable_weights, "macs": self.prunable_macs},
            "units": int(self.structure.prunable.sum()),
            "groups": [
                {
                    "name": g.name,
                    "units": len(g.units),
                    "nodes": list(g.nodes),
                    "along": list(g.along),
                    "sensitivity": self._sensitivity(g.name),
                }
                for g in self.structure.groups
            ],
            "removals": [
                {"name": r.name, "kind": r.kind, "layers": list(r.layers)} for r in self.removals
            ],
            "frozen": [asdict(f) for f in self.structure.frozen],
            "frozen_by_reason": [
                asdict(r) | {"nodes": list(r.nodes)} for r in self.structure.frozen_by_reason()
            ],
            "rectifiers": None
            if self.rectifiers is None
            else [a.to_dict() for a in self.rectifiers],
        }

    def _sensitivity(self, group: str) -> dict[str, Any] | None:
        found = next((s for s in self.sensitivities if s.group == group), None)
        return asdict(found) if found else None

    def summary(self) -> RenderableType:
        """Return tables for the terminal."""
        from rich.console import Group as Lines
        from rich.text import Text

        cost, structure = self.cost, self.structure
        facts = (
            f"{cost.params:,} parameters, {cost.weights:,} weights, {cost.macs:,} MACs a sample, "
            f"{cost.bytes:,} bytes\n{int(structure.prunable.sum())} units in "
            f"{len(structure.groups)} groups can leave; with them would leave "
            f"{100 * self.prunable_weights:.1f} % of the weights and "
            f"{100 * self.prunable_macs:.1f} % of the MACs"
        )
        parts: list[RenderableType] = [Text(facts), self._groups()]
        if structure.frozen:
            parts.append(self._frozen())
        if self.removals:
            parts.append(self._parts())
        if self.rectifiers:
            parts.append(self._rectifiers(self.rectifiers))
        elif self.rectifiers is not None:
            parts.append(Text("\nthe model has no rectifiers"))
        return Lines(*parts)

    @staticmethod
    def _rectifiers(found: Sequence[Activity]) -> RenderableType:
        from rich.table import Table

        title = f"\nrectifiers on {found[0].samples} samples"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("node", overflow="fold")
        table.add_column("operator")
        for name in ("neurons", "entropy", "on", "always on", "always off"):
            table.add_column(name, justify="right")
        for a in (activity.to_dict() for activity in found):
            counts = [str(a[k]) for k in ("always_on", "always_off")]
            shares = [f"{a['entropy']:.3f}", f"{100 * a['on']:.1f} %"]
            table.add_row(a["node"], a["op_type"], str(a["neurons"]), *shares, *counts)
        return table

    def _groups(self) -> RenderableType:
        from rich.table import Table

        table = Table(title="\ngroups", title_justify="left", box=None, pad_edge=False)
        table.add_column("group", overflow="fold")
        table.add_column("units", justify="right")
        table.add_column("coupled layers", justify="right")
        found = {s.group: s for s in self.sensitivities}
        if found:
            table.add_column("outputs move (nats) without so many", justify="right")
        for group in self.structure.groups:
            row = [group.name, str(len(group.units)), str(len(group.nodes) + len(group.along))]
            if found:
                own = found.get(group.name)
                pairs = zip(own.removed, own.divergence, strict=True) if own else ()
                row.append(", ".join(f"{n}: {d:.2g}" for n, d in pairs))
            table.add_row(*row)
        return table

    def _parts(self) -> RenderableType:
        from rich.table import Table

        title = "\nparts that can leave as a whole (--mode depth)"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("part", overflow="fold")
        table.add_column("kind")
        table.add_column("layers", justify="right")
        for r in self.removals:
            table.add_row(r.name, r.kind, str(len(r.layers)))
        return table

    def _frozen(self) -> RenderableType:
        from rich.table import Table

        table = Table(title="\nfrozen", title_justify="left", box=None, pad_edge=False)
        for name in ("layers", "channels", "weights"):
            table.add_column(name, justify="right")
        table.add_column("because it", overflow="fold")
        table.add_column("at", overflow="fold")
        for r in self.structure.frozen_by_reason():
            more = f" and {len(r.nodes) - 1} more" if len(r.nodes) > 1 else ""
            table.add_row(
                str(r.layers), f"{r.channels:,}", f"{r.weights:,}", r.reason, r.nodes[0] + more
            )
        return table


def _size(weight: Weight) -> int:
    return int(np.prod(weight.shape))
