"""What a budget is, and what each kind of it has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxprune.arrays import F64, Bool
from onnxprune.model.cost import Cost
from onnxprune.model.model import Model
from onnxprune.structure.structure import Structure
from onnxprune.structure.unit_costs import unit_costs
from onnxprune.timing.speed import Speed


@dataclass(frozen=True)
class Ledger:
    """What one traced model costs, node by node: all that a prediction may look at.

    Attributes:
        model: the model that was traced.
        structure: the result of tracing it.
        whole: what the model costs that budgets refer to.
        own: what the traced one costs, which may have lost whole parts already.
        macs: multiply-accumulates of each node, by its first output.
        seconds: measures the seconds of each node, and the part of them that leaves with its
            channels; called only by a kind that needs them.
    """

    model: Model
    structure: Structure
    whole: Cost
    own: Cost
    macs: Mapping[str, float]
    seconds: Callable[[], tuple[Mapping[str, float], Mapping[str, float]]]


@dataclass(frozen=True)
class Measured:
    """What came of a plan, measured.

    Attributes:
        before: what the original costs.
        after: what the result costs.
        speed: the result's latency relative to the original's; None if it was not measured.
        zeros: whether weights that became zero count as gone.
    """

    before: Cost
    after: Cost
    speed: Speed | None = None
    zeros: bool = False


class Kind(ABC):
    """One kind of cost that a budget may limit.

    Attributes:
        name: the setting that asks for it.
        timed: whether what remains is measured on the machine.
        grows: whether the biases that recovery adds count, so that a result has to be finished
            before it is known to be within the budget.
        removes: whether its setting says what leaves instead of what remains.
        is_work: whether it goes with the operations, so that whole branches may be the cheaper cut.
    """

    name: ClassVar[str]
    timed: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    removes: ClassVar[bool] = False
    is_work: ClassVar[bool] = False

    def limit(self, value: float, whole: Cost) -> float:
        """Return which fraction of the original's cost a setting's value lets remain.

        Args:
            value: of the setting.
            whole: what the original costs.

        Raises:
            OnnxpruneError: if the original is within it already.
        """
        return value

    @abstractmethod
    def predict(self, ledger: Ledger) -> Callable[[Bool], float]:
        """Return what computes the fraction that remains where labels stay (``bool [labels]``)."""

    def unit_costs(self, ledger: Ledger) -> F64:
        """Return what removing each unit alone would save, ``float64 [units]``, in any unit."""
        return unit_costs(ledger.structure)

    def weigh(self, scores: F64, ledger: Ledger) -> F64:
        """Return scores (``float64 [units]``) that do not know costs yet, adapted to this one."""
        return scores

    @abstractmethod
    def measure(self, found: Measured) -> float:
        """Return the fraction of the original's cost that a result has."""

    def within(self, found: Measured, value: float) -> bool:
        """Return whether a result keeps to a setting's value."""
        return self.measure(found) <= self.limit(value, found.before) + 1e-9

    def achieved(self, found: Measured) -> float | None:
        """Return what a result has, in the unit of the setting; None if that is not known."""
        return self.measure(found)

    def show(self, value: float) -> str:
        """Return a value in the unit of the setting as people read it."""
        return f"{value:.4f}"


@dataclass(frozen=True)
class Budget:
    """How much of one kind of cost may remain.

    Attributes:
        kind: of cost.
        limit: what may remain, as a fraction of the original's.
        asked: how the user put it, for messages.
    """

    kind: Kind
    limit: float
    asked: str
