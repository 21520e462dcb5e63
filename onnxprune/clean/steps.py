"""What a step behind the cut is: it maps a model to a model and says what went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.clean.facts import States
from onnxprune.model.model import Model
from onnxprune.model.shapes import Shapes

LIMIT = 1e-5
"""Relative error of the outputs from which a step counts as not exact."""


@dataclass(frozen=True)
class Seen:
    """What a step is given.

    Attributes:
        model: the model as the steps before left it, folded.
        shapes: its observed shapes.
        exclude: globs over node and initializer names that are left alone.
        states: what its Relu nodes are taken to do always, by their first output.
        align: a number whose multiples run faster; widths that are such stay such.
    """

    model: Model
    shapes: Shapes
    exclude: Sequence[str]
    states: Mapping[str, States]
    align: int


@dataclass(frozen=True)
class Step:
    """One step behind the cut.

    Attributes:
        name: the name of its record.
        apply: gives the model after it and its record, counts by kind; an empty record says
            that there is nothing (more) to do.
        tolerance: relative error of the outputs up to which the result is taken.
        useless: how a warning describes what was found but had to stay.
        last: whether it waits for a round in which no step before it found anything.
    """

    name: str
    apply: Callable[[Seen], tuple[Model, Counter[str]]]
    tolerance: float = LIMIT
    useless: str = "do nothing"
    last: bool = False
