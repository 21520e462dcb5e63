"""Request: what the user asked for, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.errors import OnnxpruneError
from onnxprune.plans.choices import (
    ALLOCATIONS,
    BUDGETS,
    DEPTH_METRICS,
    METRICS,
    MODES,
    MOST_THREADS,
    RECOVERIES,
    Criterion,
    Mode,
    Recovery,
)


@dataclass(frozen=True)
class Request:
    """The settings that decide what a run does; they appear in the report.

    Exactly one of ``sparsity``, ``params``, ``macs``, ``latency``, ``size`` and ``layers`` is
    given, or none of them and ``max_drop``, which then asks for the fewest operations within it, or
    ``lossless``.

    Attributes:
        sparsity: the fraction of the weights that leaves, between 0 and 1.
        params: the float constants of the pruned model, as a fraction of the original's.
        macs: its multiply-accumulates, likewise.
        latency: its measured latency, likewise.
        size: its file size in bytes.
        layers: with mode ``depth``, how many parts leave: a branch with all its layers, or a
            layer without a path around it, is one.
        max_drop: accuracy that may be lost on the *select* samples, as a fraction.
        min_accuracy: accuracy to be kept on them.
        mode: ``channels`` removes coupled channels, ``weights`` zeroes single weights, ``auto``
            removes as many weights with their channels as the accuracy allows, and zeroes the
            rest of a sparsity, ``depth`` removes whole parts.
        metric: a key of :data:`onnxprune.decide.score.CRITERIA`, with mode ``depth`` one of
            :data:`DEPTH_METRICS`.
        recover: ``full`` refits all layers and the classifier, ``bias`` moves the mean of what
            is removed into biases, ``none`` does nothing.
        allocation: how the budget is spread over the layers: a key of
            :data:`onnxprune.decide.spread.SPREADS`, or ``auto``: by the error that is left, or by
            the scores themselves.
        align: preferred divisor of the channels that stay in a group; None for one that
            fits the size of the group (see :func:`onnxprune.decide.allocate.auto_align`).
        exclude: globs over node and initializer names that keep their size and values.
        allow_inexact: let channels leave across which something is normalised; what remains is
            then normalised over the kept channels.
        random_inputs: there are no samples; made-up inputs serve for shapes and verification.
        dims: sizes of dynamic axes of made-up inputs, by name or by input and axis (``x:1``).
        output: name of the output with the class scores; empty for the first that can hold some.
        provider: onnxruntime's execution provider for measuring latency.
        latency_batch: samples of a run whose latency is measured, where the model leaves it open.
        seed: of everything that is drawn.
        threads: onnxruntime threads; 0 lets it choose.
        batch_size: samples per run where the model leaves it open.
        lossless: remove only what does not change the outputs.
        empirical: with ``lossless``, take rectifiers that are always on or off on the samples to
            be so on everything.

    Raises:
        OnnxpruneError: if a value is out of range, or settings exclude each other.
    """

    sparsity: float | None = None
    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    size: int | None = None
    layers: int | None = None
    max_drop: float | None = None
    min_accuracy: float | None = None
    mode: Mode = "auto"
    metric: str = "f-magnitude"
    recover: str = "full"
    allocation: str = "auto"
    align: int | None = None
    exclude: tuple[str, ...] = ()
    allow_inexact: bool = False
    random_inputs: bool = False
    dims: Mapping[str, int] = field(default_factory=dict)
    output: str = ""
    provider: str = "CPUExecutionProvider"
    latency_batch: int = 1
    seed: int = 0
    threads: int = 0
    batch_size: int = 32
    lossless: bool = False
    empirical: bool = False

    def __post_init__(self) -> None:
        self._check_values()
        self._check_budget()
        needs_samples = (
            self.mode == "depth" or self.criterion.needs_samples or self.recovery.needs_samples
        )
        if self.random_inputs and needs_samples and not self.lossless:
            usable = [n for n, c in METRICS.items() if not c.needs_samples]
            if self.mode == "depth":
                raise OnnxpruneError("mode depth needs labelled samples, not random inputs")
            raise OnnxpruneError(
                "random inputs have no statistics: use one of the metrics "
                f"{', '.join(usable)} and recover none; got metric {self.metric}, recover "
                f"{self.recover}"
            )
        if self.random_inputs and self.bounded:
            raise OnnxpruneError("max_drop and min_accuracy need labelled samples")

    def _check_values(self) -> None:
        for name in ("sparsity", "params", "macs", "latency"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise OnnxpruneError(f"{name} must lie between 0 and 1; got {value:g}")
        for name in ("max_drop", "min_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise OnnxpruneError(
                    f"{name} is a fraction and must lie between 0 and 1; got {value:g}"
                )
        for name, known in (
            ("mode", MODES),
            ("metric", DEPTH_METRICS if self.mode == "depth" else METRICS),
            ("recover", RECOVERIES),
            ("allocation", ALLOCATIONS),
        ):
            if getattr(self, name) not in known:
                raise OnnxpruneError(
                    f"{name} must be one of {', '.join(known)}; got '{getattr(self, name)}'"
                )
        for name, least in (
            ("align", 1),
            ("size", 1),
            ("layers", 1),
            ("seed", 0),
            ("threads", 0),
            ("batch_size", 1),
            ("latency_batch", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OnnxpruneError(f"{name} must be at least {least}; got {value}")
        for name, size in self.dims.items():
            if size < 1:
                raise OnnxpruneError(f"dims: '{name}' must be at least 1; got {size}")
        if self.threads > MOST_THREADS:
            raise OnnxpruneError(f"threads must be at most {MOST_THREADS}; got {self.threads}")

    def _check_budget(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        goals = [*given, *(["lossless"] if self.lossless else [])]
        if len(goals) > 1 or not (goals or self.max_drop is not None):
            raise OnnxpruneError(
                f"give exactly one of {', '.join(BUDGETS)}, or max_drop or lossless alone; got "
                f"{' and '.join(goals) or 'none'}"
            )
        if self.layers is not None and self.mode != "depth":
            raise OnnxpruneError(f"layers needs mode depth; got mode {self.mode}")
        if self.mode == "depth" and self.metric != "trial" and given != ["sparsity"]:
            raise OnnxpruneError(
                f"metric {self.metric} with mode depth needs a sparsity; use metric trial with "
                f"{goals[0] if goals else 'max_drop'}"
            )
        if self.empirical and not self.lossless:
            raise OnnxpruneError("empirical needs lossless")
        if self.mode == "weights" and given != ["sparsity"]:
            raise OnnxpruneError(
                f"mode weights needs a sparsity: zeros make a model no faster and no smaller; got "
                f"{given[0] if given else 'max_drop alone'}"
            )

    @property
    def bounded(self) -> bool:
        """Whether a bound on the accuracy was asked for."""
        return (self.max_drop, self.min_accuracy) != (None, None)

    @property
    def budget(self) -> str | None:
        """The kind of budget that was given; None if there is only a bound on the accuracy."""
        return next((name for name in BUDGETS if getattr(self, name) is not None), None)

    @property
    def zeroes(self) -> bool:
        """Whether single weights may become zero."""
        if self.mode == "depth":
            return self.sparsity is not None and self.metric != "trial"
        return self.mode == "weights" or (self.mode == "auto" and self.sparsity is not None)

    @property
    def criterion(self) -> Criterion:
        """How weights and channels are scored; parts that leave as a whole are not."""
        return METRICS["magnitude" if self.mode == "depth" else self.metric]

    @property
    def recovery(self) -> Recovery:
        """How accuracy is given back."""
        return RECOVERIES[self.recover]

    @property
    def metric_without_f(self) -> str:
        """The metric that takes the place of one that looks at F, where F is undefined."""
        return "reconstruction" if self.recovery.refits else "magnitude"

    @property
    def uses_errors(self) -> bool:
        """Whether the metric looks at the errors that are left after refitting."""
        use = self.criterion.error
        return use == "needed" or (use == "recovering" and self.recovery.refits)

    @property
    def goal(self) -> str:
        """What is asked for, in short."""
        if self.lossless:
            return "lossless, empirical" if self.empirical else "lossless"
        if self.budget is None:
            return f"max_drop {self.max_drop:g}"
        return f"{self.budget} {getattr(self, self.budget):g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self) | {"align": self.align or "auto"}
