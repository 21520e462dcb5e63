"""Pipeline: compose the stages. This is the Python API; the command line is a client of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

import onnxprune
from onnxprune import cost, graph, storage
from onnxprune.accuracy import Accuracy, class_output, measure_accuracy
from onnxprune.calibrate import Point, calibrate
from onnxprune.changes import group_changes, layer_changes
from onnxprune.data import open_dataset
from onnxprune.decide import decide
from onnxprune.errors import CalibrationError, InternalError
from onnxprune.folding import fold
from onnxprune.graph import Model
from onnxprune.holdout import Holdout, Part, Progress, hold_out, silent, skip_warnings
from onnxprune.inspection import Inspection
from onnxprune.observe import observe
from onnxprune.plan import Mode, PruningPlan
from onnxprune.recover import compensate_bias
from onnxprune.recovery import Ladder, recover_classifier, recover_layers, sample_chunks
from onnxprune.report import Report, Side
from onnxprune.request import Request, settled
from onnxprune.rewrite import rewrite
from onnxprune.score import CRITERIA, Scorer, weight_points
from onnxprune.selection import measure_moments
from onnxprune.statistics import ActivationStats
from onnxprune.subject import Subject, observe_inputs, trace_subject
from onnxprune.targets import check_target, data_target, default_target, write_files
from onnxprune.trace import trace
from onnxprune.verify import masked, verify

__all__ = ["Accuracy", "Inspection", "PruneResult", "evaluate", "inspect", "prune", "save"]


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the report on how it came about, and the files it was read from.

    ``external`` says whether its large weights are to be written beside it (see :func:`save`).
    """

    model: onnx.ModelProto
    report: Report
    sources: tuple[Path, ...]
    external: bool = False


class _Log:
    """Clock, warnings and progress of one call."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.timings: dict[str, float] = {}
        self.warnings: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def accuracy(self, model: Model, part: Part, request: Request) -> Accuracy | None:
        """Measure accuracy on a part of the samples; None if it is empty."""
        if not len(part):
            return None
        return measure_accuracy(
            model,
            part.batches(),
            output=request.output,
            threads=request.threads,
            progress=self.progress("evaluate", len(part)),
        )


def prune(
    model: str | Path,
    data: str | Path | None = None,
    *,
    sparsity: float | None = None,
    macs: float | None = None,
    mode: Mode = "channels",
    metric: str | None = None,
    recover: str | None = None,
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
    progress: Progress = silent,
) -> PruneResult:
    """Prune an ONNX model and prove that the result is right. Writes nothing.

    Args:
        model: path of the model.
        data: labelled calibration samples: a folder of class folders with images, or an .npz;
            None with ``random_inputs``.
        sparsity: see :class:`~onnxprune.request.Request`, like the other settings; give
            either this or ``macs``.
        macs: the operations of the pruned model, as a fraction of the original's.
        mode: ``channels`` or ``weights``.
        metric: the criterion; None is ``f-magnitude``, without samples ``magnitude``.
        recover: ``full``, ``bias`` or ``none``; None is ``full``, without samples ``none``.
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
        progress: see :data:`~onnxprune.holdout.Progress`.

    Raises:
        OnnxpruneError: for everything the user can act on (see :mod:`onnxprune.errors`).
        InternalError: if the result fails verification.
    """
    request = Request(
        sparsity,
        mode,
        *settled(metric, recover, random_inputs=random_inputs),
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
    )
    if (data is None) != random_inputs:
        raise CalibrationError("give either calibration samples or random_inputs")
    log = _Log(progress)
    with log.stage("load"):
        original = _load(model)
        class_output(original, output)
        samples = hold_out(
            data, eval_data, original, mean=mean, std=std, seed=seed, batch_size=batch_size
        )
        log.warnings += samples.warnings
    with log.stage("observe"):
        feeds, shapes = observe_inputs(original, samples, seed=seed, threads=threads)
    with log.stage("trace"):
        subject = trace_subject(original, shapes, request)
    classes = _count_classes(subject, samples, request, log)
    with log.stage("evaluate"):
        before = log.accuracy(original, samples.report, request)
    _warn_chance(before, classes, log)
    with log.stage("calibrate"):
        stats = _calibrate(subject, samples.fit, request, classes, log)
        log.warnings += samples.class_warnings(classes) if stats else []
    with log.stage("score"):
        plan = _decide(subject, stats, samples.fit, request, log)
    with log.stage("rewrite"):
        pruned = rewrite(subject.folded, subject.structure, plan)
    with log.stage("verify"):
        proof = verify(
            masked(subject.folded, subject.structure, plan),
            pruned,
            feeds,
            "rewritten model",
            threads=threads,
        )
    with log.stage("recover"):
        recovered, recovery = _recover(subject, pruned, plan, stats, samples, request, log)
    with log.stage("check"):
        final = _finish(recovered, original, request)
        external = len(original.files) > 1 or storage.needs_data_file(final.proto)
        location = data_target(default_target(Path(model))).name if external else None
        final = replace(final, file_bytes=storage.pack(final.proto, location).size)
        after_cost = cost.measure(final, observe(final, feeds, threads=threads))
    with log.stage("evaluate"):
        after = log.accuracy(final, samples.report, request)
    log.warnings += skip_warnings(samples.skipped)
    achieved = _achieved(subject.cost, after_cost, request)
    return PruneResult(
        final.proto,
        Report(
            model={"path": str(model), "sha256": original.sha256},
            request=request.to_dict(),
            data=samples.to_dict(),
            before=Side(subject.cost, before),
            after=Side(after_cost, after),
            achieved=achieved,
            verification=proof,
            recovery=recovery,
            groups=group_changes(subject.structure, plan),
            frozen=subject.structure.frozen,
            layers=layer_changes(subject.structure, original, final),
            timings=log.timings,
            warnings=tuple(dict.fromkeys(log.warnings)),
        ),
        original.files,
        external,
    )


def save(result: PruneResult, path: str | Path) -> Report:
    """Write a pruned model; older files survive until the new ones are complete.

    Large weights go to ``path`` + ``.data`` where the original had external data, or where
    protobuf could not hold them.

    Returns:
        The report, with the size of what was written.

    Raises:
        OutputError: if it cannot be written, or would overwrite what it was made from.
    """
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


def inspect(
    model: str | Path,
    *,
    exclude: Sequence[str] = (),
    allow_inexact: bool = False,
    threads: int = 0,
) -> Inspection:
    """Find out what can be pruned from a model, without data.

    Raises:
        ModelError: if the model cannot be read, run or traced.
    """
    original = _load(model)
    _, shapes = observe_inputs(original, None, seed=0, threads=threads)
    folded = fold(original, shapes)
    structure = trace(folded, shapes, exclude=exclude, allow_inexact=allow_inexact)
    return Inspection(structure, cost.measure(folded, shapes), cost.node_macs(folded, shapes))


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


def _count_classes(subject: Subject, samples: Holdout, request: Request, log: _Log) -> int:
    """Compare the labels with the model's classes; return the number of classes."""
    name = class_output(subject.original, request.output)
    shape = subject.shapes.first.get(name, ())
    known = shape[1] if len(shape) >= 2 else 0
    if known and samples.labels_end > known:
        raise CalibrationError(
            f"label {samples.labels_end - 1} is outside the model's classes: output '{name}' "
            f"has {known}; check the class folders or y"
        )
    if known and len(samples.class_names) not in (0, known):
        log.warnings.append(
            f"the calibration set has {len(samples.class_names)} classes, the model's output "
            f"'{name}' has {known}: check that the order of the class folders is the model's"
        )
    return max(known, samples.labels_end)


def _warn_chance(before: Accuracy | None, classes: int, log: _Log) -> None:
    if before and before.value - 2 * before.standard_error <= 1 / classes:
        log.warnings.append(
            f"the original model scores {100 * before.value:.1f} % on {before.samples} samples, "
            f"no better than chance for {classes} classes: the class order or the "
            "preprocessing (--mean, --std) is probably wrong, and so are the statistics"
        )


def _calibrate(
    subject: Subject, part: Part, request: Request, classes: int, log: _Log
) -> dict[Point, ActivationStats]:
    criterion = CRITERIA[request.metric]
    if not (criterion.needs_labels or criterion.needs_rms or request.recover != "none"):
        return {}
    return calibrate(
        subject.folded,
        subject.shapes,
        weight_points(subject.structure),
        part.batches(),
        classes=classes,
        squares=criterion.needs_rms,
        threads=request.threads,
        progress=log.progress("calibrate", len(part)),
    )


def _decide(
    subject: Subject,
    stats: Mapping[Point, ActivationStats],
    part: Part,
    request: Request,
    log: _Log,
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
    log: _Log,
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
    settings = f"{request.mode} {request.goal} {request.metric} {request.recover}"
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
    achieved = 1 - left / before.weights
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
