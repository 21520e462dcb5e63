"""Damage: the errors that remain when units or weights leave and the others make up for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.arrays import F64, Arrays
from onnxprune.decide.channel_damage import Measured, unit_errors
from onnxprune.decide.weight_damage import Thinning
from onnxprune.measure.divergence import Sensitivity
from onnxprune.structure.subject import Subject


class ErrorsLeft:
    """The errors that removals leave in one model.

    They come from second moments, which are large, and are measured only when something is
    not known yet.

    Args:
        subject: the model.
        measure: gathers the second moments.
        recall: remembers what is small: given its name and what measures it, returns it.
    """

    def __init__(
        self,
        subject: Subject,
        measure: Callable[[], Measured],
        recall: Callable[[str, Callable[[], Arrays]], Arrays],
    ) -> None:
        self._subject, self._measure, self._recall = subject, measure, recall

    @property
    def units(self) -> F64:
        """The error that each unit adds where it leaves, ``float64 [units]``."""
        return self._units["errors"]

    @property
    def sensitivities(self) -> list[Sensitivity]:
        """What cutting each group does to the outputs."""
        return _to_sensitivities(self._units)

    @cached_property
    def _units(self) -> Arrays:
        def measure() -> Arrays:
            errors, trials = unit_errors(self._subject.structure, self._measured)
            return {"errors": errors, **_from_sensitivities(trials)}

        return self._recall("unit errors", measure)

    @cached_property
    def thinning(self) -> Thinning:
        """The layers whose single weights may become zero."""
        return Thinning(self._measured, {n: w != 0 for n, w in self._weights.items()})

    @cached_property
    def scales(self) -> dict[str, float]:
        """How far the outputs move for a relative error of 1, by tensor."""

        def measure() -> Arrays:
            scales = self.thinning.scales()
            return {
                "tensors": np.array(list(scales), dtype=np.str_),
                "scales": np.array(list(scales.values()), dtype=np.float64),
            }

        found = self._recall("scales", measure)
        return dict(zip(found["tensors"].tolist(), found["scales"].tolist(), strict=True))

    @cached_property
    def _measured(self) -> Measured:
        return self._measure()

    @cached_property
    def _weights(self) -> dict[str, Any]:
        excluded = self._subject.structure.excluded
        return {n: w for n, w in self._subject.weights.items() if n not in excluded}


def _from_sensitivities(found: Sequence[Sensitivity]) -> Arrays:
    """Return trials as arrays, one entry for each trial."""
    trials = [
        (s.group, removed, divergence)
        for s in found
        for removed, divergence in zip(s.removed, s.divergence, strict=True)
    ]
    return {
        "group": np.array([group for group, _, _ in trials], dtype=np.str_),
        "removed": np.array([removed for _, removed, _ in trials], dtype=np.int64),
        "divergence": np.array([divergence for _, _, divergence in trials], dtype=np.float64),
    }


def _to_sensitivities(arrays: Arrays) -> list[Sensitivity]:
    """Invert :func:`_from_sensitivities`."""
    trials: dict[str, list[tuple[int, float]]] = {}
    columns = (arrays[name].tolist() for name in ("group", "removed", "divergence"))
    for group, removed, divergence in zip(*columns, strict=True):
        trials.setdefault(group, []).append((removed, divergence))
    return [
        Sensitivity(group, tuple(r for r, _ in own), tuple(d for _, d in own))
        for group, own in trials.items()
    ]
