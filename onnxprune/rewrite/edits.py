"""Edits: the kinds of change that a plan makes to a traced model, each with its reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.plans.cut import Cut
from onnxprune.rewrite import channels, zeros


@dataclass(frozen=True)
class Edit:
    """One kind of change.

    Attributes:
        name: what it is called.
        apply: makes the change in a graph of the model; the cut says where.
        refer: makes a graph of the model compute the same in another way, which proves the change.
    """

    name: str
    apply: Callable[[gs.Graph, Cut], None]
    refer: Callable[[gs.Graph, Cut], None]


EDITS = [
    Edit("zeros", zeros.apply, zeros.refer),  # masks have the shapes of the original
    Edit("channels", channels.apply, channels.refer),
]
"""All kinds, in the order in which they are applied."""
