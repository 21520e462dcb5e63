"""Request: what the user asked for, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxprune.errors import OnnxpruneError, RequestError
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
from onnxprune.plans.constraints import AtLeast, Between, EachAtLeast, OneOf, Spec, setting

_RATIO, _FRACTION = Between(), Between(closed=True)


@dataclass(frozen=True)
class Request:
    """The settings that decide what a run does; they appear in the report and in plans.

    Exactly one budget (:data:`~onnxprune.plans.choices.BUDGETS`) is given, or none of them and
    ``max_drop``, which then asks for the fewest operations within it, or ``lossless``. What each
    setting means stands beside it; ratios are fractions of the original's.

    Raises:
        OnnxpruneError: if a value is out of range, or settings exclude each other.
    """

    sparsity: float | None = setting(
        None, "Fraction of the weights that leaves, between 0 and 1.", _RATIO, metavar="S"
    )
    params: float | None = setting(
        None,
        "Instead: parameters of the pruned model, as a fraction of MODEL's.",
        _RATIO,
        metavar="R",
    )
    macs: float | None = setting(
        None, "Instead: its operations, as a fraction of MODEL's.", _RATIO, metavar="R"
    )
    latency: float | None = setting(
        None,
        "Instead: its latency, likewise, measured on this machine with --threads and --provider.",
        _RATIO,
        metavar="R",
    )
    size: int | None = setting(None, "Instead: its file size, at most.", AtLeast(1), metavar="2MB")
    layers: int | None = setting(
        None,
        "Instead, with --mode depth: how many parts leave; a branch with all its layers is one.",
        AtLeast(1),
        metavar="N",
    )
    max_drop: float | None = setting(
        None,
        "Accuracy that may be lost on held-out samples, as a fraction; alone: the fewest "
        "operations within it.",
        _FRACTION,
        metavar="D",
        verbs="prune plan apply",
    )
    min_accuracy: float | None = setting(
        None,
        "Accuracy to keep on held-out samples, as a fraction.",
        _FRACTION,
        metavar="A",
        verbs="prune plan apply",
    )
    mode: Mode = setting(
        "auto",
        "Remove whole channels, zero single weights, remove what the accuracy allows and zero the "
        "rest of a --sparsity, or take out whole layers.",
        OneOf(lambda: MODES),
    )
    metric: str = setting(
        "f-magnitude",
        f"How to score: {', '.join(METRICS)}; with --mode depth {', '.join(DEPTH_METRICS)}.",
        OneOf(lambda: dict.fromkeys((*METRICS, *DEPTH_METRICS))),
        metavar="NAME",
        shown="f-magnitude; without samples magnitude; with --mode depth trial",
        verbs="prune plan sweep",
    )
    recover: str = setting(
        "full",
        "Refit all layers, only move the mean of what is removed into biases, or nothing.",
        OneOf(lambda: RECOVERIES),
        shown="full; without samples none",
        verbs="prune plan apply sweep",
    )
    allocation: str = setting(
        "auto",
        f"How to spread the budget over the layers: {', '.join(ALLOCATIONS)}.",
        OneOf(lambda: ALLOCATIONS),
        metavar="NAME",
    )
    align: int | None = setting(
        None,
        "Prefer channel counts that are multiples of N, which run faster; auto: of 8, or of an "
        "eighth of a narrow group.",
        AtLeast(1),
        metavar="auto|N",
    )
    exclude: tuple[str, ...] = setting(
        (),
        "Leave nodes or initializers with matching names as they are. Repeatable.",
        metavar="GLOB",
        verbs="prune plan sweep inspect",
    )
    allow_inexact: bool = setting(
        False,
        "Let channels leave across which something is normalised (LayerNorm); what remains is "
        "normalised over the kept channels.",
        verbs="prune plan inspect",
    )
    random_inputs: bool = setting(
        False, "Work without samples: with --metric magnitude (or random) and --recover none."
    )
    dims: Mapping[str, int] = setting(
        dict,
        "Size of a dynamic axis of made-up inputs, by its name or as INPUT:AXIS=SIZE. Repeatable.",
        EachAtLeast(1),
        flag="--dim",
        metavar="NAME=SIZE",
        verbs="prune plan inspect bench",
    )
    output: str = setting(
        "",
        "Output with the class scores.",
        metavar="NAME",
        shown="the first that can hold some",
        verbs="prune plan apply sweep evaluate",
    )
    provider: str = setting(
        "CPUExecutionProvider",
        "onnxruntime's execution provider for measuring latency.",
        metavar="NAME",
        verbs="prune plan bench",
    )
    latency_batch: int = setting(
        1,
        "Samples of a run whose latency is measured; what is slower at 1 or at N is not written.",
        AtLeast(1),
        metavar="N",
        verbs="prune plan apply",
    )
    seed: int = setting(0, "Of all draws.", AtLeast(0), verbs="prune plan apply sweep bench")
    threads: int = setting(
        0,
        "onnxruntime threads (0: its own choice).",
        AtLeast(0, MOST_THREADS),
        verbs="prune plan apply sweep inspect evaluate bench",
    )
    batch_size: int = setting(
        32, "Samples per run.", AtLeast(1), verbs="prune plan apply sweep inspect evaluate"
    )
    other: Mapping[str, float] = setting(
        dict,
        "Instead: a budget of a kind that was registered beside these.",
        flag="--budget",
        metavar="NAME=VALUE",
    )
    lossless: bool = setting(
        False,
        "Instead of a budget: remove only what does not change the outputs. Needs no samples.",
        verbs="prune",
    )
    empirical: bool = setting(
        False,
        "With --lossless: take units that are always on or always off on --calib to be so on "
        "everything. The outputs stay the same on those samples only.",
        verbs="prune",
    )

    def __post_init__(self) -> None:
        for name, spec in specs(Request).items():
            value = getattr(self, name)
            if value is not None and spec.constraint:
                spec.constraint.check(name, value)
        check_goal(self)
        _check_samples(self)

    @property
    def bounded(self) -> bool:
        """Whether a bound on the accuracy was asked for."""
        return (self.max_drop, self.min_accuracy) != (None, None)

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that were given, by kind; a valid request has one at most."""
        own = {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
        return {**own, **self.other}

    @property
    def budget(self) -> str | None:
        """The kind of budget that was given; None if there is only a bound on the accuracy."""
        return next(iter(self.budgets), None)

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
        return f"{self.budget} {self.budgets[self.budget]:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self) | {"align": self.align or "auto"}


def specs(owner: type) -> dict[str, Spec]:
    """Return what is said of the settings of a dataclass, by name."""
    return {f.name: f.metadata["spec"] for f in fields(owner)}


def check_goal(request: Request) -> None:
    """Make sure that there is one goal, which the mode and the metric can meet.

    Raises:
        RequestError: naming the settings that do not go together.
    """
    given = list(request.budgets)
    bounded = request.max_drop is not None
    goals = [*given, *(["lossless"] if request.lossless else [])]
    got = [*goals, "max_drop"][0]
    depth = request.mode == "depth"
    metrics = DEPTH_METRICS if depth else METRICS
    if request.lossless and (given or bounded):
        raise RequestError(f"lossless takes no budget: leave out {[*given, 'max_drop'][0]}")
    if len(goals) > 1 or not (goals or bounded):
        raise RequestError(
            f"give exactly one of {', '.join(BUDGETS)}, or max_drop alone, or lossless; got "
            f"{' and '.join(given) or 'none'}"
        )
    if request.mode == "weights" and given != ["sparsity"]:
        raise RequestError(
            f"mode weights needs sparsity: zeros make a model no faster and no smaller; got {got}"
        )
    if request.layers is not None and not depth:
        raise RequestError(f"layers needs mode depth; got mode {request.mode}")
    if request.metric not in metrics:
        raise RequestError(
            f"mode {request.mode} goes by metric {', '.join(metrics)}; got metric {request.metric}"
        )
    if depth and request.metric != "trial" and given != ["sparsity"]:
        raise RequestError(
            f"metric {request.metric} with mode depth needs sparsity; use metric trial with {got}"
        )
    if request.empirical and not request.lossless:
        raise RequestError("empirical needs lossless")


def _check_samples(request: Request) -> None:
    """Make sure that made-up inputs are not asked for what only samples can tell.

    Raises:
        OnnxpruneError: naming what they cannot do.
    """
    if not request.random_inputs:
        return
    measured = request.criterion.needs_samples or request.recovery.needs_samples
    if request.mode == "depth" and not request.lossless:
        raise OnnxpruneError("mode depth needs labelled samples, not random inputs")
    if measured and not request.lossless:
        usable = [n for n, c in METRICS.items() if not c.needs_samples]
        raise OnnxpruneError(
            "random inputs have no statistics: use one of the metrics "
            f"{', '.join(usable)} and recover none; got metric {request.metric}, recover "
            f"{request.recover}"
        )
    if request.bounded:
        raise OnnxpruneError("max_drop and min_accuracy need labelled samples")
