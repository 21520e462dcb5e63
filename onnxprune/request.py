"""Request: what the user asked for, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.errors import OnnxpruneError
from onnxprune.plan import MODES, Mode
from onnxprune.recover import RECOVERIES
from onnxprune.score import CRITERIA
from onnxprune.spread import SPREADS


@dataclass(frozen=True)
class Request:
    """The settings that decide what a run does; they appear in the report.

    Attributes:
        sparsity: the fraction of the weights that leaves, between 0 and 1; or None.
        macs: the multiply-accumulates of the pruned model, as a fraction of the original's; or
            None. Exactly one of the two is given, and this one for channels only, or neither
            with ``lossless``.
        mode: ``channels`` removes coupled channels, ``weights`` zeroes single weights.
        metric: a key of :data:`onnxprune.score.CRITERIA`.
        recover: ``full`` refits all layers and the classifier, ``bias`` moves the mean of what
            is removed into biases, ``none`` does nothing.
        allocation: how the budget is spread over the layers: a key of
            :data:`onnxprune.spread.SPREADS`, or ``auto``: by the error that is left, or by the
            scores themselves.
        align: preferred divisor of the channels that stay in a group; None for one that
            fits the size of the group (see :func:`onnxprune.allocate.auto_align`).
        exclude: globs over node and initializer names that keep their size and values.
        allow_inexact: let channels leave across which something is normalised; what remains is
            then normalised over the kept channels.
        random_inputs: there are no samples; made-up inputs serve for shapes and verification.
        output: name of the output with the class scores; empty for the first.
        seed: of everything that is drawn.
        threads: onnxruntime threads; 0 lets it choose.
        batch_size: samples per run where the model leaves it open.
        lossless: remove only what does not change the outputs.
        empirical: with ``lossless``, take rectifiers that are always on or off on the samples to
            be so on everything.

    Raises:
        OnnxpruneError: if a value is out of range.
    """

    sparsity: float | None
    mode: Mode = "channels"
    metric: str = "f-magnitude"
    recover: str = "bias"
    align: int | None = None
    exclude: tuple[str, ...] = ()
    output: str = ""
    seed: int = 0
    threads: int = 0
    batch_size: int = 32
    allow_inexact: bool = False
    random_inputs: bool = False
    macs: float | None = None
    allocation: str = "auto"
    lossless: bool = False
    empirical: bool = False

    def __post_init__(self) -> None:
        if (self.sparsity is not None) + (self.macs is not None) + self.lossless != 1:
            raise OnnxpruneError("give either sparsity or macs or lossless")
        if self.empirical and not self.lossless:
            raise OnnxpruneError("empirical needs lossless")
        for name in ("sparsity", "macs"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise OnnxpruneError(f"{name} must lie between 0 and 1; got {value:g}")
        for name, known in (
            ("mode", MODES),
            ("metric", CRITERIA),
            ("recover", RECOVERIES),
            ("allocation", ("auto", *SPREADS)),
        ):
            if getattr(self, name) not in known:
                raise OnnxpruneError(
                    f"{name} must be one of {', '.join(known)}; got '{getattr(self, name)}'"
                )
        for name, least in (("align", 1), ("seed", 0), ("threads", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OnnxpruneError(f"{name} must be at least {least}; got {value}")
        if self.macs is not None and self.mode != "channels":
            raise OnnxpruneError("macs needs mode channels: zeros take as many operations")
        needs_samples = CRITERIA[self.metric].needs_samples or self.recover != "none"
        if self.random_inputs and needs_samples and not self.lossless:
            usable = [n for n, c in CRITERIA.items() if not c.needs_samples]
            raise OnnxpruneError(
                "random inputs have no statistics: use one of the metrics "
                f"{', '.join(usable)} and recover none; got metric {self.metric}, recover "
                f"{self.recover}"
            )

    @property
    def uses_errors(self) -> bool:
        """Whether the metric looks at the errors that are left after refitting."""
        use = CRITERIA[self.metric].error
        return use == "needed" or (use == "recovering" and self.recover == "full")

    @property
    def goal(self) -> str:
        """What is asked for, in short."""
        if self.lossless:
            return "lossless empirical" if self.empirical else "lossless"
        return f"macs {self.macs:g}" if self.macs is not None else f"{self.sparsity:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self) | {"align": self.align or "auto"}
