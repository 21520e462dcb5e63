"""Choices: what settings may be called, and what goes with the names. Quick to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["auto", "channels", "weights", "depth"]
MODES: tuple[Mode, ...] = ("auto", "channels", "weights", "depth")

MOST_THREADS = 1024
"""Threads beyond which a number is taken for a mistake; onnxruntime would start them all."""

BUDGETS = ("sparsity", "params", "macs", "latency", "size", "layers")

DEPTH_METRICS = ("trial", "egp", "magnitude")
"""What ``depth`` goes by: trial removal, entropy (EGP), or for comparison magnitude."""

DROP = 0.01
"""Accuracy that ``auto`` may lose where the user does not say how much."""


@dataclass(frozen=True)
class Recovery:
    """How accuracy is given back.

    Attributes:
        steps: where its list of steps is, ``module:NAME``; imported when they are taken (see
            :mod:`onnxprune.recover.recoveries`).
        needs_samples: whether it looks at samples.
        refits: whether the layers that stay are fitted to make up for what leaves.
        adds_biases: whether layers may get biases that have none.
    """

    steps: str
    needs_samples: bool = True
    refits: bool = False
    adds_biases: bool = True


RECOVERIES: dict[str, Recovery] = {
    "none": Recovery("onnxprune.recover.recoveries:NONE", needs_samples=False, adds_biases=False),
    "bias": Recovery("onnxprune.recover.recoveries:BIAS"),
    "full": Recovery("onnxprune.recover.recoveries:FULL", refits=True),
}
"""The recoveries by name."""

ALLOCATIONS = ("auto", "global", "lamp", "erk", "uniform")


@dataclass(frozen=True)
class Criterion:
    """What a criterion looks at.

    Attributes:
        needs_labels: whether it looks at F.
        needs_rms: whether it looks at the root mean square.
        per_layer: whether scores have to be normalised before layers are ranked together;
            ``activation`` is on the scale of the layer's output as it is.
        error: whether it looks at the error that is left; ``recovering`` if what is left is
            going to be refitted, so that the error is what remains.
    """

    needs_labels: bool = False
    needs_rms: bool = False
    per_layer: bool = True
    error: Literal["unused", "recovering", "needed"] = "unused"

    @property
    def needs_samples(self) -> bool:
        """Whether it looks at anything that has to be measured."""
        return self.needs_labels or self.needs_rms or self.error == "needed"


METRICS: Mapping[str, Criterion] = {
    "f-magnitude": Criterion(needs_labels=True, error="recovering"),
    "f": Criterion(needs_labels=True),
    "magnitude": Criterion(),
    "activation": Criterion(needs_rms=True, per_layer=False),
    "reconstruction": Criterion(error="needed"),
    "random": Criterion(),
}
"""The criteria; :data:`onnxprune.decide.score.CRITERIA` holds their functions."""
