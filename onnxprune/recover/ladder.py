"""Ladder: the best model so far; what raises the loss is not accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.model.model import Model
from onnxprune.samples.holdout import Subset


@dataclass(frozen=True)
class Effort:
    """How much of the samples a recovery uses.

    Attributes:
        samples: the most samples to fit on; None for all.
        rows: share of the rows that a layer is fitted on otherwise.
    """

    samples: int | None = None
    rows: float = 1.0

    def thinned(self, subset: Subset) -> Subset:
        """Return at most that many samples of a subset, spread evenly."""
        return subset if self.samples is None else subset.at_most(self.samples)

    def spared(self, subset: Subset) -> Subset:
        """Return the samples of a subset that are not used."""
        return replace(subset, rows=np.setdiff1d(subset.rows, self.thinned(subset).rows))


ALL = Effort()
"""For the result."""

QUICK = Effort(samples=512, rows=0.1)
"""For candidates on the way to a decision."""

Loss = Callable[[Model], float | None]
"""Returns the loss of a model on the select subset; None if that is empty."""


@dataclass(frozen=True)
class Offer:
    """One offer to a ladder: the losses on the *select* subset, and whether it was accepted."""

    name: str
    loss_before: float | None
    loss_after: float | None
    accepted: bool


@dataclass
class Ladder:
    """The best model so far, and what was offered on the way to it.

    Attributes:
        model: the model to start from; later the best.
        loss: measures a model.
        offers: all of them, in order.
        warnings: what the user should know.
        first: the loss to start from.
        best: the loss of the best model; None where nothing is measured.
    """

    model: Model
    loss: Loss
    offers: list[Offer] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.best = self.loss(self.model)

    def offer(self, name: str, candidate: Model) -> bool:
        """Accept a model if its loss is not worse; return whether it was."""
        after = self.loss(candidate)
        accepted = self.best is None or (after is not None and bool(after <= self.best))
        self.offers.append(Offer(name, self.best, after, accepted))
        if accepted:
            self.model, self.best = candidate, after
        return accepted

    def refuse(self, name: str) -> None:
        """Warn that the last offer raised the loss."""
        last = self.offers[-1]
        assert last.loss_before is not None
        shown = "not finite" if last.loss_after is None else f"{last.loss_after:.4f}"
        self.warnings.append(
            f"{name} was not used: it raises the loss on held-out samples from "
            f"{last.loss_before:.4f} to {shown}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report's ``recovery``."""
        result: dict[str, Any] = {"accepted": any(offer.accepted for offer in self.offers)}
        if self.best is not None:
            result |= {"loss_without": self.first, "loss_with": self.best}
        return result | {"steps": [asdict(offer) for offer in self.offers]}
