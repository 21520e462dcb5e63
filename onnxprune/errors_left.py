"""Errors left: what leaves with units and weights once the others make up for it, when needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune import records
from onnxprune.cache import Arrays, Cache
from onnxprune.labels import F64
from onnxprune.selection import Measured, Sensitivity, unit_errors
from onnxprune.subject import Subject
from onnxprune.thinning import Thinning


class ErrorsLeft:
    """The errors that removals leave in one model.

    They come from second moments, which are large, and are measured only when something is
    not known yet.

    Args:
        subject: the model.
        measure: gathers the second moments.
        cache: remembers what is small.
        settings: what it depends on, see :meth:`~onnxprune.cache.Cache.recall`.
    """

    def __init__(
        self,
        subject: Subject,
        measure: Callable[[], Measured],
        cache: Cache,
        settings: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._subject, self._measure = subject, measure
        self._cache, self._settings = cache, settings

    @property
    def units(self) -> F64:
        """The error that each unit adds where it leaves, ``float64 [units]``."""
        return self._units["errors"]

    @property
    def sensitivities(self) -> list[Sensitivity]:
        """What cutting each group does to the outputs."""
        return records.to_sensitivities(self._units)

    @cached_property
    def _units(self) -> Arrays:
        def measure() -> Arrays:
            errors, trials = unit_errors(self._subject.structure, self._measured)
            return {"errors": errors, **records.from_sensitivities(trials)}

        return self._cache.recall("unit errors", self._settings, measure)

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

        found = self._cache.recall("scales", self._settings, measure)
        return dict(zip(found["tensors"].tolist(), found["scales"].tolist(), strict=True))

    @cached_property
    def _measured(self) -> Measured:
        return self._measure()

    @cached_property
    def _weights(self) -> dict[str, Any]:
        excluded = self._subject.structure.excluded
        return {n: w for n, w in self._subject.weights.items() if n not in excluded}
