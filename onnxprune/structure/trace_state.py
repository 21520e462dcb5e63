"""Trace state: what one walk over a graph has found so far."""

from __future__ import annotations

from onnxprune.arrays import I64
from onnxprune.model.shapes import Shapes
from onnxprune.structure.labels import Labels
from onnxprune.structure.structure import (
    Inexact,
    Origin,
    OriginalShape,
    Renumber,
    Sink,
    Site,
    Sizes,
    Weight,
)


class TraceState:
    """The state of one walk over a graph: labels of every tensor and what rules recorded."""

    def __init__(self, shapes: Shapes, *, allow_inexact: bool = False) -> None:
        self.shapes = shapes
        self.allow_inexact = allow_inexact
        self.inexact: list[Inexact] = []
        self.parameters: dict[str, str] = {}
        self.labels = Labels()
        self.axes: dict[str, dict[int, I64]] = {}
        self.sites: list[Site] = []
        self.sizes: list[Sizes] = []
        self.renumbered: list[Renumber] = []
        self.original_shapes: list[OriginalShape] = []
        self.sinks: list[Sink] = []
        self.origins: list[Origin] = []
        self.weights: list[Weight] = []
