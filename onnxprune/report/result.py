"""Result: measure a pruned model, hold it against budget and gates, report it and write it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnxprune.errors import InternalError, QualityError
from onnxprune.files import check_target, data_target, default_target, write_files
from onnxprune.measure.accuracy import Accuracy
from onnxprune.model import cost, storage
from onnxprune.model import model as graph
from onnxprune.model.observe import observe
from onnxprune.plans.budgets import KINDS, Measured
from onnxprune.plans.choices import DROP
from onnxprune.report.changes import group_changes, layer_changes
from onnxprune.report.report import Report, Side
from onnxprune.run.agreement import collapse
from onnxprune.run.execute import Outcome
from onnxprune.run.gates import drop_of
from onnxprune.run.study import Study
from onnxprune.samples.holdout import skip_warnings
from onnxprune.timing.speed import refusal


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the report on how it came about, and the files it was read from.

    Attributes:
        model: the model.
        report: the report.
        sources: the files of the original.
        external: whether large weights belong into a file of their own.
        missed: the quality gate that is not met, in a sentence; empty if all are.
    """

    model: onnx.ModelProto
    report: Report
    sources: tuple[Path, ...]
    external: bool = False
    missed: str = ""


def assemble_result(
    outcome: Outcome, path: str, before: Accuracy | None, *, edited: bool = False
) -> PruneResult:
    """Measure a pruned model, hold it against the budget and the quality gates, and report it.

    Args:
        outcome: the pruned model, its plan and its proof.
        path: of the original.
        before: accuracy of the original on the *report* samples; None without any.
        edited: whether the plan was carried out as a file that may have been edited: then it may
            miss the budget, with a warning.

    Raises:
        InternalError: if the budget was missed by a plan that was not edited.
    """
    study, run = outcome.study, outcome.study.run
    given, subject, log, request = run.given, study.subject, run.log, run.request
    original = given.original
    external = run.location is not None or storage.needs_data_file(outcome.model.proto)
    location = data_target(default_target(Path(path))).name if external else None
    final = replace(outcome.model, file_bytes=storage.pack(outcome.model.proto, location).size)
    with log.stage("check"):
        after_cost = cost.measure(final, observe(final, run.feeds[0], runner=run.runner))
    after = run.accuracy(final, run.samples.report)
    unchanged = outcome.model is original
    if original.proto.training_info and not unchanged:
        log.warnings.append("the graphs to train the model with fit its old weights: they left")
    log.warnings += [*outcome.warnings, *skip_warnings(run.samples.skipped)]
    if warning := collapse(outcome, before, after):
        log.warnings.append(warning)
    found = Measured(given.cost, after_cost, outcome.speed, request.zeroes)
    _check_budget(study, found, edited=edited)
    whole = 1 - after_cost.weights / max(given.cost.weights, 1)
    missed = _missed(study, outcome, whole) or refusal(outcome.speed)
    decided = not (edited or request.mode in ("weights", "depth") or request.lossless)
    trials = study.decider.sensitivities if decided else []
    report = Report(
        model={"path": path, "sha256": original.sha256},
        request=request.to_dict(),
        data=run.samples.to_dict(),
        before=Side(given.cost, before),
        after=Side(after_cost, after),
        speed=outcome.speed,
        drop=drop_of(study, outcome.selected),
        zeros=found.zeros,
        gate_met=not missed,
        verification=outcome.verification,
        recovery=outcome.recovery,
        clean_up=outcome.clean_up,
        rectifiers=study.activations.rectifiers,
        groups=group_changes(subject.structure, outcome.plan, trials),
        frozen=subject.structure.frozen,
        removals=[r for r in run.removals if r.name in outcome.plan.removals],
        layers=layer_changes(given.structure, original, final),
        timings=log.timings,
        warnings=tuple(dict.fromkeys(log.warnings)),
    )
    proto = graph.reread(original) if unchanged else final.proto
    return PruneResult(proto, report, original.files, external, missed)


def _missed(study: Study, outcome: Outcome, whole: float) -> str:
    """Return which quality gate is not met; warn of a drop that the samples cannot tell.

    Args:
        study: knows the request and the original.
        outcome: the pruned model and its accuracy on the samples that decide.
        whole: the share of the weights that left whole.
    """
    request, drop = study.run.request, drop_of(study, outcome.selected)
    if drop is None or outcome.selected is None:
        return ""
    limit = DROP if request.max_drop is None else request.max_drop
    if drop.standard_error > max(limit, 1e-9) / 2:
        study.run.log.warnings.append(
            f"the {drop.samples} samples that decide are too few to tell a drop of {limit:g}: its "
            f"standard error is {drop.standard_error:.4f}; give more samples"
        )
    if request.max_drop is not None and drop.value > limit:
        return (
            f"accuracy drops by {drop.value:.4f} ± {drop.standard_error:.4f} on {drop.samples} "
            f"held-out samples, allowed are {limit:g}; ask for less, or write it with --force"
        )
    if request.max_drop is None and drop.value > limit and request.budget == "sparsity":
        divided = (
            f"; {100 * whole:.1f} % of the weights left whole, which is expected to cost no more "
            f"than {limit:g} beyond what zeros alone cost"
        )
        study.run.log.warnings.append(
            f"accuracy drops by {drop.value:.4f} ± {drop.standard_error:.4f} on {drop.samples} "
            f"held-out samples{divided if request.mode == 'auto' else ''}; ask for less"
        )
    if request.min_accuracy is not None and outcome.selected.value < request.min_accuracy:
        return (
            f"accuracy is {outcome.selected.value:.4f} on {drop.samples} held-out samples, wanted "
            f"are {request.min_accuracy:g}; ask for less, or write it with --force"
        )
    return ""


def save(result: PruneResult, path: str | Path, *, force: bool = False) -> Report:
    """Write a pruned model; older files survive until the new ones are complete.

    Large weights go to ``path`` + ``.data`` where the original had external data, or where
    protobuf could not hold them.

    Args:
        result: what :func:`prune` returned.
        path: where to write.
        force: write it even if it misses a quality gate.

    Returns:
        The report, with the size of what was written.

    Raises:
        OutputError: if it cannot be written, or would overwrite what it was made from.
        QualityError: if it misses a quality gate.
    """
    if result.missed and not force:
        raise QualityError(f"{path}: not written: {result.missed}")
    path = Path(path)
    data = data_target(path) if result.external else None
    targets = [path] if data is None else [data, path]
    for target in targets:
        check_target(target, result.sources, force=True)
    packed = storage.pack(result.model, data.name if data else None)
    write_files(
        {target: packed.data() if target == data else [packed.model] for target in targets},
        lambda written: packed.check(written[path], written[data] if data else None),
    )
    after = result.report.after
    return replace(result.report, after=replace(after, cost=replace(after.cost, bytes=packed.size)))


def _check_budget(study: Study, found: Measured, *, edited: bool) -> None:
    """Make sure that the budget was kept.

    Raises:
        InternalError: if it was not; after an edit that is a warning, and a latency always.
    """
    request = study.run.request
    kind = KINDS.get(request.budget or "")
    wanted, got = (request.budgets[kind.name], kind.achieved(found)) if kind else (None, None)
    if kind is None or wanted is None or got is None or kind.within(found, wanted):
        return
    if kind.timed and found.speed:
        speed = found.speed
        study.run.log.warnings.append(
            f"{request.goal} was missed: {speed.value:.4f} ({speed.low:.4f} to {speed.high:.4f}) "
            "was measured in the end; ask for less, or measure on a machine with less to do"
        )
        return
    missed = f"the pruned model has {kind.name} {got:g}, requested {wanted:g}"
    if not edited:
        raise InternalError(missed)
    study.run.log.warnings.append(f"{missed}: the plan was edited, or made with other settings")
