"""The ladder: steps of the recovery, none of which may raise the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.model.model import Model
from onnxprune.samples.holdout import Part


@dataclass(frozen=True)
class Effort:
    """How much of the samples a recovery uses.

    Attributes:
        samples: the most samples to fit on; None for all.
        rows: share of the rows that a layer is fitted on otherwise.
    """

    samples: int | None = None
    rows: float = 1.0

    def thinned(self, part: Part) -> Part:
        """Return at most that many samples of a part, spread evenly."""
        return part if self.samples is None else part.at_most(self.samples)

    def spared(self, part: Part) -> Part:
        """Return the samples of a part that are not used."""
        return replace(part, rows=np.setdiff1d(part.rows, self.thinned(part).rows))


ALL = Effort()
"""For the result."""

QUICK = Effort(samples=512, rows=0.1)
"""For candidates on the way to a decision."""

Loss = Callable[[Model], float | None]
"""Returns the loss of a model on the select part; None if that is empty."""


@dataclass(frozen=True)
class Step:
    """One step of a recovery: the losses on the select part and whether it was accepted."""

    name: str
    loss_before: float | None
    loss_after: float | None
    accepted: bool


@dataclass
class Ladder:
    """The best model so far, and the steps that led to it.

    Args:
        model: the model to start from.
        loss: measures a model.
    """

    model: Model
    loss: Loss
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.best = self.loss(self.model)

    def offer(self, name: str, candidate: Model) -> bool:
        """Accept a model if its loss is not worse; return whether it was."""
        after = self.loss(candidate)
        accepted = self.best is None or (after is not None and bool(after <= self.best))
        self.steps.append(Step(name, self.best, after, accepted))
        if accepted:
            self.model, self.best = candidate, after
        return accepted

    def refuse(self, name: str) -> None:
        """Warn that the last offer raised the loss."""
        step = self.steps[-1]
        assert step.loss_before is not None
        shown = "not finite" if step.loss_after is None else f"{step.loss_after:.4f}"
        self.warnings.append(
            f"{name} was not used: it raises the loss on held-out samples from "
            f"{step.loss_before:.4f} to {shown}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report's ``recovery``."""
        accepted = any(step.accepted for step in self.steps)
        result: dict[str, Any] = {"accepted": accepted}
        if self.best is not None:
            result |= {"loss_without": self.first, "loss_with": self.best}
        return result | {"steps": [asdict(step) for step in self.steps]}
