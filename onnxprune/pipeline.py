"""Pipeline: compose the stages. This is the Python API; the command line is a client of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxprune
from onnxprune import cost, graph
from onnxprune.accuracy import Accuracy, class_output, measure_accuracy
from onnxprune.calibrate import Point, calibrate
from onnxprune.changes import group_changes, layer_changes
from onnxprune.classes import count_classes, warn_chance
from onnxprune.cleaning import clean_up
from onnxprune.data import open_dataset
from onnxprune.decide import decide
from onnxprune.entropy import Activity, activities, relu_states, watch
from onnxprune.errors import CalibrationError, InternalError
from onnxprune.folding import fold
from onnxprune.graph import Model
from onnxprune.holdout import Holdout, Part, Progress, hold_out, silent, skip_warnings
from onnxprune.inspection import Inspection
from onnxprune.log import Log
from onnxprune.observe import observe
from onnxprune.plan import Mode, PruningPlan
from onnxprune.recover import compensate_bias
from onnxprune.recovery import Ladder, recover_classifier, recover_layers, sample_chunks
from onnxprune.rectifiers import find_rectifiers
from onnxprune.report import Report, Side
from onnxprune.request import Request
from onnxprune.rewrite import rewrite
from onnxprune.score import CRITERIA, Scorer, weight_points
from onnxprune.selection import measure_moments
from onnxprune.session import Feeds
from onnxprune.statistics import ActivationStats
from onnxprune.subject import Subject, observe_inputs, trace_subject
from onnxprune.targets import write_file
from onnxprune.trace import trace
from onnxprune.verify import Verification, masked, verify

__all__ = ["Accuracy", "Inspection", "PruneResult", "evaluate", "inspect", "prune", "save"]


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the report on how it came about, and the files it was read from."""

    model: onnx.ModelProto
    report: Report
    sources: tuple[Path, ...]


def prune(
    model: str | Path,
    data: str | Path | None = None,
    *,
    sparsity: float | None = None,
    macs: float | None = None,
    mode: Mode = "channels",
    metric: str = "f-magnitude",
    recover: str = "full",
    allocation: str = "auto",
    align: int | None = None,
    exclude: Sequence[str] = (),
    eval_data: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str = "",
    seed: int = 0,
    threads: int = 0,
    batch_size: int = 32,
    allow_inexact: bool = False,
    random_inputs: bool = False,
    lossless: bool = False,
    empirical: bool = False,
    progress: Progress = silent,
) -> PruneResult:
    """Prune an ONNX model and prove that the result is right. Writes nothing.

    Args:
        model: path of the model.
        data: labelled calibration samples: a folder of class folders with images, or an .npz;
            None with ``random_inputs``.
        sparsity: see :class:`~onnxprune.request.Request`, like the other settings; give
            either this or ``macs``, or ``lossless``.
        macs: the operations of the pruned model, as a fraction of the original's.
        mode: ``channels`` or ``weights``.
        metric: the criterion.
        recover: ``full``, ``bias`` or ``none``.
        allocation: how the budget is spread over the layers.
        align: preferred divisor of the channels that stay; None for an automatic choice.
        exclude: globs over node and initializer names.
        eval_data: samples to report accuracy on; without it a part of ``data`` is held out.
        mean: channel means for image folders, on the 0..1 scale.
        std: channel standard deviations, likewise.
        output: name of the output with the class scores.
        seed: of everything that is drawn.
        threads: onnxruntime threads.
        batch_size: samples per run.
        allow_inexact: let channels leave across which something is normalised.
        random_inputs: work without samples.
        lossless: remove only what does not change the outputs; needs no samples.
        empirical: with ``lossless``, take what rectifiers always do on ``data`` for certain.
        progress: see :data:`~onnxprune.holdout.Progress`.

    Raises:
        OnnxpruneError: for everything the user can act on (see :mod:`onnxprune.errors`).
        InternalError: if the result fails verification.
    """
    request = Request(
        sparsity,
        mode,
        metric,
        recover,
        align,
        tuple(exclude),
        output,
        seed,
        threads,
        batch_size,
        allow_inexact,
        random_inputs,
        macs,
        allocation,
        lossless,
        empirical,
    )
    if (data is None) != random_inputs and not (lossless and data is None):
        raise CalibrationError("give either calibration samples or random_inputs")
    if empirical and data is None:
        raise CalibrationError("empirical needs calibration samples")
    log = Log(progress)
    with log.stage("load"):
        original = _load(model)
        class_output(original, output)
        samples = hold_out(
            data, eval_data, original, mean=mean, std=std, seed=seed, batch_size=batch_size
        )
    with log.stage("observe"):
        feeds, shapes = observe_inputs(original, samples, seed=seed, threads=threads)
    with log.stage("trace"):
        subject = trace_subject(original, shapes, request)
    classes = count_classes(subject, samples, request, log)
    with log.stage("evaluate"):
        before = log.accuracy(original, samples.report, request)
    warn_chance(before, classes, log)
    with log.stage("calibrate"):
        stats, rectifiers = _calibrate(subject, samples.fit, request, classes, log)
    cut = _cut(subject, stats, samples, feeds, request, log)
    with log.stage("clean up"):
        states = relu_states(rectifiers or ()) if empirical else {}
        clean, went = clean_up(
            cut.model, feeds, exclude=request.exclude, states=states, threads=threads
        )
    log.warnings += went.warnings()
    with log.stage("check"):
        final = original if clean is original else _finish(clean, original, request)
        after_cost = cost.measure(final, observe(final, feeds, threads=threads))
    with log.stage("evaluate"):
        after = log.accuracy(final, samples.report, request)
    log.warnings += skip_warnings(samples.skipped)
    achieved = _achieved(subject.cost, after_cost, request)
    return PruneResult(
        graph.reread(original) if final is original else final.proto,
        Report(
            model={"path": str(model), "sha256": original.sha256},
            request=request.to_dict(),
            data=samples.to_dict(),
            before=Side(subject.cost, before),
            after=Side(after_cost, after),
            achieved=achieved,
            verification=cut.proof or went.verification or Verification(0.0, 0.0, 0),
            recovery=cut.recovery,
            clean_up=went,
            rectifiers=rectifiers,
            groups=group_changes(subject.structure, cut.plan),
            frozen=subject.structure.frozen,
            layers=layer_changes(subject.structure, original, final),
            timings=log.timings,
            warnings=tuple(dict.fromkeys(log.warnings)),
        ),
        original.files,
    )


def save(result: PruneResult, path: str | Path) -> None:
    """Write a pruned model; an older file at ``path`` survives until the new one is complete.

    Raises:
        OutputError: if it cannot be written.
    """
    data = graph.serialise(Model(result.model))

    def same(written: bytes) -> None:
        if written != data:
            raise InternalError(f"{path}: what was written reads back differently")

    write_file(Path(path), data, same)


def inspect(
    model: str | Path,
    data: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    exclude: Sequence[str] = (),
    allow_inexact: bool = False,
    threads: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Inspection:
    """Find out what can be pruned from a model, and with samples what its rectifiers do.

    Raises:
        OnnxpruneError: if the model or the samples cannot be used.
    """
    original = _load(model)
    samples = hold_out(data, None, original, mean=mean, std=std, seed=0, batch_size=batch_size)
    _, shapes = observe_inputs(original, samples, seed=0, threads=threads)
    folded = fold(original, shapes)
    structure = trace(folded, shapes, exclude=exclude, allow_inexact=allow_inexact)
    found = None
    if data is not None:
        whole = replace(samples.fit, rows=np.arange(len(samples.fit.dataset.labels)))
        rectifiers = find_rectifiers(folded, shapes, structure)
        watched, known, points = watch(folded, shapes, rectifiers)
        stats = calibrate(
            watched,
            known,
            points,
            whole.batches(),
            classes=samples.labels_end,
            threads=threads,
            progress=progress("calibrate", len(whole)),
        )
        found = activities(rectifiers, stats)
    costs = cost.measure(folded, shapes), cost.node_macs(folded, shapes)
    return Inspection(structure, *costs, found)


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str = "",
    threads: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Accuracy:
    """Measure the top-1 accuracy of a model on labelled samples.

    Raises:
        OnnxpruneError: if the model or the samples cannot be used.
    """
    loaded = _load(model)
    class_output(loaded, output)
    dataset = open_dataset(Path(data), loaded.inputs, mean=mean, std=std)
    size = loaded.fixed_batch or batch_size
    accuracy = measure_accuracy(
        loaded,
        dataset.batches(None, size),
        output=output,
        threads=threads,
        progress=progress("evaluate", len(dataset.labels)),
    )
    return replace(accuracy, warnings=tuple(skip_warnings(dataset.skipped)))


def _load(path: str | Path) -> Model:
    model = graph.load(path)
    graph.require_fixed_channels(model)
    return model


def _calibrate(
    subject: Subject, part: Part, request: Request, classes: int, log: Log
) -> tuple[dict[Point, ActivationStats], list[Activity] | None]:
    """Gather the statistics that scores and recovery need, and what rectifiers do."""
    criterion, lossless = CRITERIA[request.metric], request.lossless
    needed = criterion.needs_labels or criterion.needs_rms or request.recover != "none"
    if not (request.empirical if lossless else needed):
        return {}, None
    rectifiers = find_rectifiers(subject.folded, subject.shapes, subject.structure)
    model, shapes, states = watch(subject.folded, subject.shapes, rectifiers)
    stats = calibrate(
        model,
        shapes,
        states if lossless else [*weight_points(subject.structure), *states],
        part.batches(),
        classes=classes,
        squares=criterion.needs_rms and not lossless,
        threads=request.threads,
        progress=log.progress("calibrate", len(part)),
    )
    return stats, activities(rectifiers, stats)


@dataclass(frozen=True)
class _Cut:
    """A model from which something was removed, and the proof; none if nothing was to be."""

    plan: PruningPlan
    model: Model
    proof: Verification | None
    recovery: dict[str, Any]


def _cut(
    subject: Subject,
    stats: Mapping[Point, ActivationStats],
    samples: Holdout,
    feeds: Feeds,
    request: Request,
    log: Log,
) -> _Cut:
    """Decide, rewrite, verify and recover."""
    if request.lossless:
        plan = PruningPlan(subject.original.sha256)
        return _Cut(plan, subject.original, None, {"accepted": False, "steps": []})
    with log.stage("score"):
        plan = _decide(subject, stats, samples.fit, request, log)
    with log.stage("rewrite"):
        pruned = rewrite(subject.folded, subject.structure, plan)
    with log.stage("verify"):
        reference = masked(subject.folded, subject.structure, plan)
        proof = verify(reference, pruned, feeds, "rewritten model", threads=request.threads)
    with log.stage("recover"):
        recovered, recovery = _recover(subject, pruned, plan, stats, samples, request, log)
    return _Cut(plan, recovered, proof, recovery)


def _decide(
    subject: Subject,
    stats: Mapping[Point, ActivationStats],
    part: Part,
    request: Request,
    log: Log,
) -> PruningPlan:
    measured = None
    if request.uses_errors:
        with log.stage("moments"):
            measured = measure_moments(
                subject.folded,
                subject.structure,
                subject.shapes,
                subject.weights,
                sample_chunks(subject.folded, subject.shapes, part),
                output=class_output(subject.original, request.output),
                macs=subject.cost.macs,
                seed=request.seed,
                threads=request.threads,
                progress=log.progress("moments", len(subject.structure.weights)),
            )
    scorer = Scorer(
        subject.structure, subject.weights, stats, metric=request.metric, seed=request.seed
    )
    return decide(subject, scorer, measured, request)


def _recover(
    subject: Subject,
    pruned: Model,
    plan: PruningPlan,
    stats: Mapping[Point, ActivationStats],
    samples: Holdout,
    request: Request,
    log: Log,
) -> tuple[Model, dict[str, Any]]:
    """Run the steps of the recovery; none may raise the loss on the *select* part."""
    if request.recover == "none":
        return pruned, {"accepted": False, "steps": []}

    def loss(model: Model) -> float | None:
        try:
            measured = log.accuracy(model, samples.select, request)
        except CalibrationError:  # the outputs are not finite
            return float("inf")
        return measured.loss if measured else None

    ladder = Ladder(pruned, loss)
    common = (subject.structure, plan)
    accepted = ladder.offer("bias", compensate_bias(subject.folded, pruned, *common, stats))
    if not accepted and request.recover == "bias":
        ladder.refuse("bias compensation")
    if request.recover == "full":
        recover_layers(
            ladder,
            subject.folded,
            pruned,
            *common,
            subject.shapes,
            samples.fit,
            seed=request.seed,
            threads=request.threads,
            progress=log.progress,
        )
        recover_classifier(
            ladder,
            *common,
            subject.shapes,
            samples.fit,
            class_output(subject.original, request.output),
            threads=request.threads,
        )
    log.warnings += ladder.warnings
    return ladder.model, ladder.to_dict()


def _finish(model: Model, original: Model, request: Request) -> Model:
    """Add provenance and make sure that the result is a valid model with the same interface."""
    cut = f"{request.mode} {request.goal} {request.metric} {request.recover}"
    settings = request.goal if request.lossless else cut
    final = graph.with_metadata(
        model,
        {
            "onnxprune.version": onnxprune.__version__,
            "onnxprune.source_sha256": original.sha256,
            "onnxprune.request": f"{settings} seed {request.seed}",
        },
    )
    graph.check(final)
    return final


def _achieved(before: cost.Cost, after: cost.Cost, request: Request) -> float:
    """Return the sparsity that was reached; make sure that the request was.

    Raises:
        InternalError: if it was not.
    """
    left = after.weights if request.mode == "channels" else after.nonzero_weights
    achieved = 1 - left / max(before.weights, 1)
    if request.sparsity is not None and achieved < request.sparsity - 1e-9:
        raise InternalError(
            f"the pruned model reaches sparsity {achieved}, requested {request.sparsity}"
        )
    if request.macs is not None and after.macs > request.macs * before.macs + 1:
        raise InternalError(
            f"the pruned model takes {after.macs} of {before.macs} operations, requested "
            f"{request.macs:g} of them"
        )
    return achieved
