"""Execute: carry out a plan, prove it, and give accuracy back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from onnxprune.clean.clean_up import CleanUp, clean_up
from onnxprune.clean.facts import relu_states
from onnxprune.errors import BudgetError, CalibrationError
from onnxprune.measure.accuracy import Accuracy
from onnxprune.model import cost
from onnxprune.model.edit import check, with_metadata
from onnxprune.model.model import Model
from onnxprune.model.qoperators import joined, separated
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.request import Request
from onnxprune.recover.ladder import ALL, QUICK, Effort, Judgement, Ladder
from onnxprune.recover.recoveries import recover
from onnxprune.recover.task import Task
from onnxprune.rewrite.rewrite import masked, rewrite
from onnxprune.rewrite.verify import Verification, verify
from onnxprune.rewrite.without_parts import shorten, silenced
from onnxprune.run.study import Shortening, Study
from onnxprune.timing.speed import Speed
from onnxprune.version import __version__

WIDTH = 8
"""Behind a cut, a width that is a multiple of it stays one: others run slower, by up to a fifth."""

SLACK = 1e-3
"""How far a clean-up may take a sparsity of zeros beyond what was asked for."""


@dataclass(frozen=True)
class Outcome:
    """A plan that was carried out.

    Attributes:
        study: the study that the plan belongs to.
        plan: the channels, weights and parts that were removed.
        model: the result.
        verification: the proof of the rewrite.
        clean_up: nodes and channels that were taken out because they compute nothing.
        recovery: the steps of the recovery, for the report.
        warnings: what the user should know of them.
        selected: accuracy on the *select* samples, None without any.
        speed: measured latency; None if it was not measured.
    """

    study: Study
    plan: PruningPlan
    model: Model
    verification: Verification
    clean_up: CleanUp
    recovery: dict[str, Any]
    warnings: tuple[str, ...]
    selected: Accuracy | None
    speed: Speed | None = None

    @property
    def narrower(self) -> bool:
        """Whether channels left."""
        return self.plan.cuts_channels or any(self.clean_up.channels.values())

    @property
    def smaller(self) -> bool:
        """Whether channels or whole parts left, so that the latency may be another."""
        return bool(self.narrower or self.plan.removals or self.clean_up.merged)


def execute(study: Study, plan: PruningPlan, effort: Effort = ALL) -> Outcome:
    """Rewrite a model by a plan, verify the result, and recover the accuracy.

    Args:
        study: the model.
        plan: a plan for it.
        effort: how much of the samples the recovery uses.

    Raises:
        InternalError: if the rewritten model is wrong.
    """
    log, cut, gone = study.run.log, Cut.of(study.subject, plan), study.shortening
    with log.stage("rewrite"):
        pruned = rewrite(cut)
    with log.stage("verify"):
        proof = verify(
            masked(cut),
            pruned,
            study.run.feeds,
            "rewritten model",
            runner=study.run.runner,
        )
    with log.stage("recover"):
        ladder = _recover(study, pruned, cut, effort)
    clean, went = ladder.model, CleanUp()
    if effort == ALL:
        clean, went = cleaned(study, ladder.model)
        if went and _exceeds(study, clean):
            clean, went = ladder.model, CleanUp(dropped=("channels beyond the sparsity",))
    if effort == ALL:
        _check_joined(clean, study)
    model, selected = with_provenance(clean, study), None
    if study.run.gated:
        known = ladder.judged.accuracy if clean is ladder.model else None
        selected = known or study.run.accuracy(model, study.run.samples.select)
    if gone:
        proof = max(proof, gone.verification, key=lambda v: v.max_rel_error)
    return Outcome(
        study,
        plan_for_original(plan, study),
        model,
        proof,
        went,
        ladder.to_dict(),
        tuple(ladder.warnings),
        selected,
    )


def _check_joined(model: Model, study: Study) -> None:
    """Make sure that integer operators are written as the layers that were verified.

    They are read back as float layers: their own sums saturate on some processors.

    Raises:
        InternalError: if they are not.
    """
    written = joined(model, study.run.given.original)
    if written is not model:
        again = separated(written, study.subject.shapes)[0]
        what = "model with integer operators"
        verify(model, again, study.run.feeds, what, runner=study.run.runner)


def plan_for_original(plan: PruningPlan, study: Study) -> PruningPlan:
    """Return a plan for a shortened model as a plan for the model as given."""
    if study.shortening is None:
        return plan
    return replace(
        plan, model_sha256=study.run.given.original.sha256, removals=study.shortening.names
    )


def execute_quickly(study: Study, plan: Callable[[], PruningPlan]) -> Outcome | None:
    """Carry out a candidate with little effort; None if there is no such plan."""
    try:
        return execute(study, plan(), QUICK)
    except BudgetError:
        return None


def without_parts(study: Study, names: Sequence[str]) -> Study:
    """Take whole parts out of the model that a study was given.

    Args:
        study: the model, shortened already or not.
        names: of all the removals that are to be gone (see :attr:`Study.removals`).

    Returns:
        The study of the shortened model. Nothing makes up for the parts yet: :func:`execute` does,
        together with what a plan takes out of the rest.

    Raises:
        InternalError: if the rewritten model is wrong.
    """
    log, given = study.run.log, study.run.given
    known = {r.name: r for r in study.run.removals}
    removals = [known[name] for name in names]
    with log.stage("rewrite"):
        short = shorten(given.folded, removals, given.structure, given.shapes)
    with log.stage("verify"):
        proof = verify(
            silenced(given.folded, removals),
            short,
            study.run.feeds,
            "shortened model",
            runner=study.run.runner,
        )
    changed = {r.name for r in removals} | {n for r in removals for n, _ in r.readers}
    return study.of_model(short, Shortening(tuple(names), proof, frozenset(changed)))


def recover_only(left: Study, effort: Effort = ALL) -> Outcome:
    """Make up for the parts that are gone, and take out nothing more."""
    return execute(left, PruningPlan(left.run.given.original.sha256), effort)


def recovered_study(left: Study) -> Study:
    """Return a study of a shortened model once its layers are fitted, with few samples."""
    assert left.shortening is not None
    model = recover_only(left, QUICK).model
    return left.of_model(model, replace(left.shortening, changed=frozenset()))


def _judge(study: Study, model: Model) -> Judgement:
    """Measure a model on the *select* samples."""
    try:
        measured = study.run.accuracy(model, study.run.samples.select)
    except CalibrationError:  # outputs that are not finite
        return Judgement(float("inf"))
    return Judgement(measured.loss, measured) if measured else Judgement()


def _exceeds(study: Study, model: Model) -> bool:
    """Whether more weights are gone than a sparsity of zeros asks for."""
    request = study.run.request
    if request.sparsity is None or not request.zeroes:
        return False
    wanted = (1 - request.sparsity - SLACK) * study.run.given.cost.weights
    return cost.count_nonzero(model) < wanted


def clean(study: Study) -> Outcome:
    """Take out of the original what does not change its outputs (``--lossless``)."""
    original = study.subject.original
    model, went = cleaned(study, original)
    return Outcome(
        study,
        PruningPlan(original.sha256),
        original if model is original else with_provenance(model, study),
        went.verification or Verification(0.0, 0.0, 0),
        went,
        {"accepted": False, "steps": []},
        tuple(went.warnings()),
        None,
    )


def cleaned(study: Study, model: Model) -> tuple[Model, CleanUp]:
    """Take out of a model what computes nothing; return the same object if there is nothing."""
    request = study.run.request
    if not study.cleans:
        return model, CleanUp()
    width = study.align or (1 if request.lossless else WIDTH)
    states = relu_states(study.activations.rectifiers or ()) if request.empirical else {}
    with study.run.log.stage("clean up"):
        return clean_up(
            model,
            study.run.feeds[0],
            exclude=request.exclude,
            states=states,
            align=width,
            runner=study.run.runner,
        )


def _recover(study: Study, pruned: Model, cut: Cut, effort: Effort) -> Ladder:
    """Give accuracy back by the recovery of the request."""
    run = study.run
    task = Task(
        original=run.given.folded,
        pruned=pruned,
        cut=cut,
        changed=study.changed,
        subset=effort.thinned(run.samples.fit),
        effort=effort,
        stats=lambda: study.activations.stats,
        output=run.output,
        # zeros alone must not make a model larger
        grow=cut.plan.cuts_channels or study.shortening is not None,
        seed=run.request.seed,
        runner=run.runner,
    )
    return recover(task, run.request.recovery, partial(_judge, study))


def with_provenance(model: Model, study: Study) -> Model:
    """Add provenance and make sure that the result is a valid model with the same interface."""
    final = with_metadata(
        joined(model, study.run.given.original),
        {
            "onnxprune.version": __version__,
            "onnxprune.source_sha256": study.run.given.original.sha256,
            "onnxprune.request": _settings(study.run.request),
        },
    )
    check(final)
    return final


def _settings(request: Request) -> str:
    if request.lossless:
        return f"{request.goal} seed {request.seed}"
    return f"{request.mode} {request.goal} {request.metric} {request.recover} seed {request.seed}"
