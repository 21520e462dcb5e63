"""Reading: how samples and what was measured of them are read. It decides nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.plans.constraints import setting

_ALL = "prune plan apply sweep inspect evaluate"


@dataclass(frozen=True)
class Reading:
    """The settings that say which samples there are, and how they become inputs."""

    eval_data: str | Path | None = setting(
        None,
        "Samples to report accuracy on.",
        flag="--eval",
        metavar="DATA",
        shown="a held-out part of --calib",
        verbs="prune plan apply sweep",
    )
    mean: Sequence[float] | None = setting(
        None, "Image means, on 0..1.", metavar="R,G,B", verbs=_ALL
    )
    std: Sequence[float] | None = setting(
        None, "Image deviations, on 0..1.", metavar="R,G,B", verbs=_ALL
    )
    cache: bool = setting(
        True,
        "Measure everything anew, and keep nothing for the next run.",
        flag="--no-cache",
        verbs="prune plan apply sweep",
    )
