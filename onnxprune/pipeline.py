"""Pipeline: the verbs. This is the Python API; the command line is a client of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnxprune import cost, graph, storage
from onnxprune.accuracy import Accuracy, class_output, measure_accuracy
from onnxprune.changes import group_changes, layer_changes
from onnxprune.data import open_dataset
from onnxprune.errors import CalibrationError, InternalError, QualityError
from onnxprune.execute import Outcome
from onnxprune.folding import fold
from onnxprune.graph import Model
from onnxprune.holdout import Progress, hold_out, silent, skip_warnings
from onnxprune.inspection import Inspection
from onnxprune.log import Log
from onnxprune.observe import observe
from onnxprune.report import Report, Side
from onnxprune.request import DROP, Mode, Request, settled
from onnxprune.search import drop_of, search
from onnxprune.session import PROVIDER, check_provider
from onnxprune.speed import refusal
from onnxprune.study import Study
from onnxprune.subject import observe_inputs
from onnxprune.targets import check_target, data_target, default_target, write_files
from onnxprune.trace import trace

__all__ = ["Accuracy", "Inspection", "PruneResult", "evaluate", "inspect", "prune", "save"]


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


def prune(
    model: str | Path,
    data: str | Path | None = None,
    *,
    sparsity: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    size: int | None = None,
    max_drop: float | None = None,
    min_accuracy: float | None = None,
    mode: Mode = "auto",
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
    provider: str = PROVIDER,
    progress: Progress = silent,
) -> PruneResult:
    """Prune an ONNX model and prove that the result is right. Writes nothing.

    Args:
        model: path of the model.
        data: labelled calibration samples: a folder of class folders with images, or an .npz;
            None with ``random_inputs``.
        sparsity: see :class:`~onnxprune.request.Request`, like the other settings; give
            exactly one budget (this to ``size``), or ``max_drop`` alone.
        params: the float constants of the pruned model, as a fraction of the original's.
        macs: its operations, likewise.
        latency: its latency on this machine, likewise; measured with ``threads``.
        size: its file size in bytes.
        max_drop: accuracy that may be lost on held-out samples, as a fraction.
        min_accuracy: accuracy to be kept on them.
        mode: ``auto``, ``channels`` or ``weights``.
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
        provider: onnxruntime's execution provider that latency is measured with.
        progress: see :data:`~onnxprune.holdout.Progress`.

    Raises:
        OnnxpruneError: for everything the user can act on (see :mod:`onnxprune.errors`).
        InternalError: if the result fails verification.
    """
    metric, recover = settled(metric, recover, random_inputs=random_inputs)
    request = Request(
        sparsity=sparsity,
        params=params,
        macs=macs,
        latency=latency,
        size=size,
        max_drop=max_drop,
        min_accuracy=min_accuracy,
        mode=mode,
        metric=metric,
        recover=recover,
        allocation=allocation,
        align=align,
        exclude=tuple(exclude),
        allow_inexact=allow_inexact,
        random_inputs=random_inputs,
        output=output,
        provider=provider,
        seed=seed,
        threads=threads,
        batch_size=batch_size,
    )
    if (data is None) != random_inputs:
        raise CalibrationError("give either calibration samples or random_inputs")
    check_provider(provider)
    log = Log(progress)
    with log.stage("load"):
        original = _load(model)
        class_output(original, output)
        samples = hold_out(
            data, eval_data, original, mean=mean, std=std, seed=seed, batch_size=batch_size
        )
    location = data_target(default_target(Path(model))).name if len(original.files) > 1 else None
    study = Study(original, samples, request, log, location)
    before = study.reported
    with log.stage("search"):
        outcome = search(study)
    return _result(study, outcome, str(model), before)


def _result(study: Study, outcome: Outcome, path: str, before: Accuracy | None) -> PruneResult:
    """Measure what came out, and report it."""
    subject, log, original = study.subject, study.log, study.subject.original
    external = study.location is not None or storage.needs_data_file(outcome.model.proto)
    location = data_target(default_target(Path(path))).name if external else None
    final = replace(outcome.model, file_bytes=storage.pack(outcome.model.proto, location).size)
    with log.stage("check"):
        after_cost = cost.measure(final, observe(final, study.feeds, threads=study.request.threads))
    after = study.accuracy(final, study.samples.report)
    log.warnings += [*outcome.warnings, *skip_warnings(study.samples.skipped)]
    missed = _missed(study, outcome) or refusal(outcome.speed)
    report = Report(
        model={"path": path, "sha256": original.sha256},
        request=study.request.to_dict(),
        data=study.samples.to_dict(),
        before=Side(subject.cost, before),
        after=Side(after_cost, after),
        achieved=_achieved(subject.cost, after_cost, study.request),
        speed=outcome.speed,
        drop=drop_of(study, outcome),
        gate_met=not missed,
        verification=outcome.verification,
        recovery=outcome.recovery,
        groups=group_changes(subject.structure, outcome.plan),
        frozen=subject.structure.frozen,
        layers=layer_changes(subject.structure, original, final),
        timings=log.timings,
        warnings=tuple(dict.fromkeys(log.warnings)),
    )
    return PruneResult(final.proto, report, original.files, external, missed)


def _missed(study: Study, outcome: Outcome) -> str:
    """Return which quality gate is not met; warn of a drop that the samples cannot tell."""
    request, drop = study.request, drop_of(study, outcome)
    if drop is None or outcome.selected is None:
        return ""
    limit = DROP if request.max_drop is None else request.max_drop
    if drop.standard_error > max(limit, 1e-9) / 2:
        study.log.warnings.append(
            f"the {drop.samples} samples that decide are too few to tell a drop of {limit:g}: its "
            f"standard error is {drop.standard_error:.4f}; give more samples"
        )
    if request.max_drop is not None and drop.value > limit:
        return (
            f"accuracy drops by {drop.value:.4f} ± {drop.standard_error:.4f} on {drop.samples} "
            f"held-out samples, allowed are {limit:g}; ask for less, or write it with --force"
        )
    if request.max_drop is None and drop.value > limit and request.budget == "sparsity":
        study.log.warnings.append(
            f"accuracy drops by {drop.value:.4f} ± {drop.standard_error:.4f} on {drop.samples} "
            "held-out samples, however the sparsity is divided; ask for less"
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


def _achieved(before: cost.Cost, after: cost.Cost, request: Request) -> float:
    """Return the sparsity that was reached; make sure that the budget was kept.

    Raises:
        InternalError: if it was not.
    """
    left = after.nonzero_weights if request.zeroes else after.weights
    achieved = 1 - left / before.weights
    kept = {
        "sparsity": (1 - achieved, 1 - (request.sparsity or 0.0)),
        "params": (after.params / before.params, request.params),
        "macs": ((after.macs - 1) / max(before.macs, 1), request.macs),
        "size": (after.bytes, request.size),
    }
    for kind, (got, wanted) in kept.items():
        if request.budget == kind and wanted is not None and got > wanted + 1e-9:
            raise InternalError(f"the pruned model has {kind} {got:g}, requested {wanted:g}")
    return achieved
