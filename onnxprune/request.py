"""Request: what the user asked for, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.errors import OnnxpruneError
from onnxprune.plan import MODES, Mode
from onnxprune.recover import RECOVERIES
from onnxprune.score import CRITERIA


@dataclass(frozen=True)
class Request:
    """The settings that decide what a run does; they appear in the report.

    Attributes:
        sparsity: the fraction of the weights that leaves, between 0 and 1.
        mode: ``channels`` removes coupled channels, ``weights`` zeroes single weights.
        metric: a key of :data:`onnxprune.score.CRITERIA`.
        recover: ``bias`` moves the mean of what is removed into biases, ``none`` does not.
        align: preferred divisor of the channels that stay.
        exclude: globs over node and initializer names that keep their size and values.
        allow_inexact: let channels leave across which something is normalised; what remains is
            then normalised over the kept channels.
        random_inputs: there are no samples; made-up inputs serve for shapes and verification.
        output: name of the output with the class scores; empty for the first.
        seed: of everything that is drawn.
        threads: onnxruntime threads; 0 lets it choose.
        batch_size: samples per run where the model leaves it open.

    Raises:
        OnnxpruneError: if a value is out of range.
    """

    sparsity: float
    mode: Mode = "channels"
    metric: str = "f-magnitude"
    recover: str = "bias"
    align: int = 8
    exclude: tuple[str, ...] = ()
    output: str = ""
    seed: int = 0
    threads: int = 0
    batch_size: int = 32
    allow_inexact: bool = False
    random_inputs: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.sparsity < 1.0:
            raise OnnxpruneError(f"sparsity must lie between 0 and 1; got {self.sparsity:g}")
        for name, known in (("mode", MODES), ("metric", CRITERIA), ("recover", RECOVERIES)):
            if getattr(self, name) not in known:
                raise OnnxpruneError(
                    f"{name} must be one of {', '.join(known)}; got '{getattr(self, name)}'"
                )
        for name, least in (("align", 1), ("seed", 0), ("threads", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise OnnxpruneError(f"{name} must be at least {least}; got {getattr(self, name)}")

        criterion = CRITERIA[self.metric]
        statistics = criterion.needs_labels or criterion.needs_rms
        if self.random_inputs and (statistics or self.recover != "none"):
            usable = [n for n, c in CRITERIA.items() if not (c.needs_labels or c.needs_rms)]
            raise OnnxpruneError(
                "random inputs have no statistics: use one of the metrics "
                f"{', '.join(usable)} and recover none; got metric {self.metric}, recover "
                f"{self.recover}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)
