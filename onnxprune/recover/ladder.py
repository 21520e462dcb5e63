"""Ladder: the best model so far; what raises the loss is not accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.measure.accuracy import Accuracy
from onnxprune.model.model import Model
from onnxprune.printable import told_apart
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


@dataclass(frozen=True)
class Judgement:
    """How good a model is on the *select* part.

    Attributes:
        loss: cross-entropy in nats; infinite if its outputs are not finite, None if the part is
            empty.
        accuracy: the whole measurement; None where there is no finite one.
    """

    loss: float | None = None
    accuracy: Accuracy | None = None


Judge = Callable[[Model], Judgement]
"""Measures a model on the *select* part."""


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
        judge: measures a model.
        offers: all of them, in order.
        warnings: what the user should know.
        first: the loss to start from; None where nothing is measured.
        judged: how good the best model is.
    """

    model: Model
    judge: Judge
    offers: list[Offer] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.judged = self.judge(self.model)
        self.first = self.judged.loss

    @property
    def best(self) -> float | None:
        """The loss of the best model; None where nothing is measured."""
        return self.judged.loss

    def offer(self, name: str, candidate: Model) -> bool:
        """Accept a model if its loss is not worse; return whether it was."""
        judged = self.judge(candidate)
        after = judged.loss
        accepted = self.best is None or (after is not None and bool(after <= self.best))
        self.offers.append(Offer(name, self.best, after, accepted))
        if accepted:
            self.model, self.judged = candidate, judged
        return accepted

    def refuse(self, name: str) -> None:
        """Warn that the last offer raised the loss."""
        last = self.offers[-1]
        assert last.loss_before is not None
        after = np.inf if last.loss_after is None else last.loss_after
        shown = told_apart(last.loss_before, after) if np.isfinite(after) else ("", "not finite")
        before = shown[0] or f"{last.loss_before:.4f}"
        self.warnings.append(
            f"{name} was not used: it raises the loss on held-out samples from {before} to "
            f"{shown[1]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report's ``recovery``."""
        result: dict[str, Any] = {"accepted": any(offer.accepted for offer in self.offers)}
        if self.best is not None:
            result |= {"loss_without": self.first, "loss_with": self.best}
        return result | {"steps": [asdict(offer) for offer in self.offers]}
