"""Shapes: those of all tensors, as two runs of a model showed them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxprune.arrays import Array


@dataclass(frozen=True)
class Shapes:
    """Shapes of all tensors, observed at two sizes of every dynamic axis.

    ``batch`` and ``other_batch`` are the numbers of samples of the two observations (equal
    where the model fixes it). ``constants`` holds values that both agree on although nodes
    compute them. ``feeds`` are the inputs of the first, and others of the second one's sizes.
    ``loose`` tensors may have still other sizes, which depend on the data; ``stuck`` says which
    dynamic axes work with one size only.
    """

    first: Mapping[str, tuple[int, ...]]
    second: Mapping[str, tuple[int, ...]]
    batch: int
    other_batch: int
    constants: Mapping[str, Array] = field(default_factory=dict)
    feeds: tuple[Mapping[str, Array], ...] = ()
    loose: frozenset[str] = frozenset()
    stuck: tuple[str, ...] = ()

    def has(self, tensor: str) -> bool:
        """Whether the tensor was observed with one rank."""
        return tensor in self.first and len(self.first[tensor]) == len(self.second[tensor])

    def sizes(self, tensor: str) -> tuple[int, ...]:
        """Return the shape in the first observation."""
        return self.first[tensor]

    def holds_samples(self, tensor: str, axis: int) -> bool:
        """Whether the size of an axis is in proportion to the number of samples."""
        first, second = self.first[tensor][axis], self.second[tensor][axis]
        return first % self.batch == 0 and first * self.other_batch == second * self.batch

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors have one shape whatever the inputs are, as far as was observed."""
        known = self.has(a) and self.has(b) and not {a, b} & self.loose
        return known and all(view[a] == view[b] for view in (self.first, self.second))

    def is_dynamic(self, tensor: str, axis: int) -> bool:
        """Whether an axis differs between the observations."""
        return self.first[tensor][axis] != self.second[tensor][axis]
