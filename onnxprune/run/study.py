"""Study: one state of the model in a run, with all that is known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from onnxprune.arrays import Arrays
from onnxprune.decide.damage import ErrorsLeft
from onnxprune.decide.decider import Decider
from onnxprune.decide.latency_savings import measure_savings
from onnxprune.decide.score import Scorer
from onnxprune.linear.layer import has_layers
from onnxprune.model import cost
from onnxprune.model.model import Model
from onnxprune.model.observe import observe
from onnxprune.plans.budgets import Ledger
from onnxprune.rewrite.verify import Verification
from onnxprune.run.activations import Activations
from onnxprune.run.cache import Cache
from onnxprune.run.run import Run
from onnxprune.structure.subject import Subject, trace_subject


@dataclass(frozen=True)
class Shortening:
    """Whole parts that left a model.

    Attributes:
        names: of the removals, in the order in which they left.
        verification: the proof of the rewrite.
        changed: tensors that are not what they were, to be made up for; none once that is done.
    """

    names: tuple[str, ...]
    verification: Verification
    changed: frozenset[str]


class Knowledge:
    """Measurements that decisions about one model rest on; each is made when it is first needed.

    Args:
        run: its samples and request.
        subject: the model, traced.
        activations: of this model, or of the one that it was before parts left and nothing made
            up for them yet.
        changed: tensors that are not what they were there.
    """

    def __init__(
        self, run: Run, subject: Subject, activations: Activations, changed: frozenset[str]
    ) -> None:
        self._run, self._subject, self._changed = run, subject, changed
        self.activations = activations

    @cached_property
    def node_macs(self) -> Mapping[str, float]:
        """Multiply-accumulates of each node for one sample."""
        return cost.node_macs(self._subject.folded, self._subject.shapes)

    @cached_property
    def node_seconds(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Measured seconds of each node, and the part of them that leaves with its channels."""
        run = self._run
        with run.log.stage("latency"):
            return measure_savings(self._subject, run.timing_feeds[0], runner=run.runner)

    @cached_property
    def decider(self) -> Decider:
        """What turns budgets into plans, with an automatic alignment."""
        run, subject = self._run, self._subject
        request = run.request
        metric = "magnitude" if request.mode == "depth" else request.metric
        stats = self.activations.stats
        scorer = Scorer(subject.structure, subject.weights, stats, metric=metric, seed=request.seed)
        errors = None
        if request.uses_errors and has_layers(subject.structure):
            errors = ErrorsLeft(subject, lambda: self.activations.moments, self._recall)
        ledger = Ledger(
            subject.folded,
            subject.structure,
            run.given.cost,
            subject.cost,
            self.node_macs,
            lambda: self.node_seconds,
        )
        return Decider(subject, scorer, errors, ledger, request)

    def _recall(self, what: str, measure: Callable[[], Arrays]) -> Arrays:
        """Remember an error that removals leave, or measure it."""
        return self.activations.recall(what, {"without": sorted(self._changed)}, measure)


@dataclass(frozen=True, eq=False)
class Study:
    """One state of the model: as given, without some parts, or with fitted weights.

    Attributes:
        run: samples, request and the model as given.
        subject: the model that channels and weights are chosen from, traced.
        knowledge: measurements of that model.
        whole: the activations of the model as given.
        shortening: the parts that are gone; None if none are.
        align: preferred divisor of the channels that stay, in whatever is decided or cleaned up:
            that of the request, unless a result was repaired; None for an automatic choice.
        cleans: whether what computes nothing is taken out of results.
    """

    run: Run
    subject: Subject
    knowledge: Knowledge
    whole: Activations
    shortening: Shortening | None = None
    align: int | None = None
    cleans: bool = True

    @classmethod
    def of(cls, run: Run) -> Study:
        """Return the study of the model as given."""
        activations = Activations(run, run.given, run.cache)
        knowledge = Knowledge(run, run.given, activations, frozenset())
        return cls(run, run.given, knowledge, activations, align=run.request.align)

    @property
    def activations(self) -> Activations:
        """What was measured on the *fit* samples, of the model before parts left it."""
        return self.knowledge.activations

    @property
    def changed(self) -> frozenset[str]:
        """Tensors of this model that are not what they were in the model as given."""
        return self.shortening.changed if self.shortening else frozenset()

    @cached_property
    def decider(self) -> Decider:
        """What turns budgets into plans for this model."""
        return self.knowledge.decider.aligned(self.align)

    def of_model(self, model: Model, shortening: Shortening | None) -> Study:
        """Return a study of another state of the model, with the same preferences.

        Until its layers are fitted, the activations of the model as given stand for its own.

        Args:
            model: shortened, fitted or both.
            shortening: the parts that are gone; None if it only has other weights.
        """
        run = self.run
        with run.log.stage("trace"):
            subject = trace_subject(  # of which nothing may be left
                model,
                observe(model, run.feeds[0], runner=run.runner),
                exclude=run.request.exclude,
                allow_inexact=run.request.allow_inexact,
            )
        changed = shortening.changed if shortening else frozenset[str]()
        # Fitted layers compute other activations than those of the model as given.
        activations = self.whole if changed else Activations(run, subject, Cache(None))
        knowledge = Knowledge(run, subject, activations, changed)
        return replace(self, subject=subject, knowledge=knowledge, shortening=shortening)
