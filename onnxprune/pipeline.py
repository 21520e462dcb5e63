"""Pipeline: the verbs. This is the Python API; the command line is a client of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import cost, graph
from onnxprune.accuracy import Accuracy, measure_accuracy
from onnxprune.choices import Mode, settled
from onnxprune.class_scores import class_scores
from onnxprune.data import open_dataset
from onnxprune.errors import CalibrationError, OnnxpruneError, PlanError
from onnxprune.execute import execute, shortened
from onnxprune.folding import fold
from onnxprune.graph import Model
from onnxprune.holdout import Progress, evaluated, folder_names, hold_out, silent, skip_warnings
from onnxprune.input_channels import require_fixed_channels
from onnxprune.inspection import Inspection
from onnxprune.log import Log
from onnxprune.plan_file import check_model, check_removals, check_structure, load_plan, save_plan
from onnxprune.pruning_plan import PruningPlan
from onnxprune.qoperators import separated
from onnxprune.removals import find_removals
from onnxprune.request import Request
from onnxprune.result import PruneResult, measured, save
from onnxprune.search import find_plan, search, timed
from onnxprune.session import PROVIDER, check_provider
from onnxprune.study import Study
from onnxprune.subject import observe_inputs
from onnxprune.sweeping import RATIOS, Curve, sweep_macs
from onnxprune.targets import data_target, default_target
from onnxprune.trace import trace

__all__ = [
    "Accuracy",
    "Inspection",
    "PruneResult",
    "PruningPlan",
    "Request",
    "apply",
    "evaluate",
    "inspect",
    "load_plan",
    "plan",
    "prune",
    "save",
    "save_plan",
    "sweep",
]


def prune(
    model: str | Path,
    data: str | Path | None = None,
    *,
    sparsity: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    size: int | None = None,
    layers: int | None = None,
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
    dims: Mapping[str, int] | None = None,
    lossless: bool = False,
    empirical: bool = False,
    provider: str = PROVIDER,
    latency_batch: int = 1,
    cache: bool = True,
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
        layers: with mode ``depth``, how many parts leave.
        max_drop: accuracy that may be lost on held-out samples, as a fraction.
        min_accuracy: accuracy to be kept on them.
        mode: ``auto``, ``channels``, ``weights`` or ``depth``.
        metric: the criterion; None is ``f-magnitude``, without samples ``magnitude``, with mode
            ``depth`` ``trial``.
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
        dims: sizes of dynamic axes of made-up inputs, by name or by input and axis (``x:1``).
        lossless: remove only what does not change the outputs; needs no samples.
        empirical: with ``lossless``, take what rectifiers always do on ``data`` for certain.
        provider: onnxruntime's execution provider that latency is measured with.
        latency_batch: samples of a run whose latency is measured; what is slower than the original
            with so many or with one is not written.
        cache: use and keep what was measured (see :mod:`onnxprune.cache`).
        progress: see :data:`~onnxprune.holdout.Progress`.

    Raises:
        OnnxpruneError: for everything the user can act on (see :mod:`onnxprune.errors`).
        InternalError: if the result fails verification.
    """
    metric, recover = settled(metric, recover, random_inputs=random_inputs, mode=mode)
    request = Request(
        sparsity=sparsity,
        params=params,
        macs=macs,
        latency=latency,
        size=size,
        layers=layers,
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
        dims=dict(dims or {}),
        output=output,
        seed=seed,
        threads=threads,
        batch_size=batch_size,
        lossless=lossless,
        empirical=empirical,
        provider=provider,
        latency_batch=latency_batch,
    )
    original = _load(model)
    study = _study(original, model, request, data, eval_data, mean, std, cache, progress)
    before = study.reported
    with study.log.stage("search"):
        outcome = search(study)
    return measured(outcome, str(model), before)


def plan(
    model: str | Path,
    data: str | Path | None,
    request: Request,
    *,
    eval_data: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: bool = True,
    progress: Progress = silent,
) -> PruningPlan:
    """Decide what to prune from an ONNX model, as :func:`prune` does, and stop there.

    Args:
        model: path of the model.
        data: as for :func:`prune`.
        request: what is asked for; the plan remembers it.
        eval_data: as for :func:`prune`: it decides how ``data`` is divided.
        mean: channel means for image folders, on the 0..1 scale.
        std: channel standard deviations, likewise.
        cache: use and keep what was measured.
        progress: see :data:`~onnxprune.holdout.Progress`.

    Returns:
        A plan that names all groups; write it with :func:`save_plan`.

    Raises:
        OnnxpruneError: for everything the user can act on.
    """
    original = _load(model)
    study = _study(original, model, request, data, eval_data, mean, std, cache, progress)
    study, found = find_plan(study)
    groups = study.subject.structure.groups
    keep = {g.name: found.keep.get(g.name, np.ones(len(g.units), np.bool_)) for g in groups}
    # With the alignment that a repair came to, the clean-up is the same when the plan is applied.
    request = replace(request, align=study.align)
    return replace(found, keep=keep, request=request, nodes={g.name: g.nodes for g in groups})


def apply(
    model: str | Path,
    plan: PruningPlan | str | Path,
    data: str | Path | None = None,
    *,
    max_drop: float | None = None,
    min_accuracy: float | None = None,
    recover: str | None = None,
    output: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    latency_batch: int | None = None,
    eval_data: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: bool = True,
    progress: Progress = silent,
) -> PruneResult:
    """Carry out a plan, edited or not: rewrite, verify, recover, report. Writes nothing.

    With the samples and settings that the plan was made with, the model is the one that
    :func:`prune` gives. A budget that an edited plan misses is a warning, as the edit decides.

    Args:
        model: path of the model that the plan was made for.
        plan: the plan, or the path of its file.
        data: as for :func:`prune`; None for a plan that was made without samples.
        max_drop: like the settings up to ``latency_batch`` as for :func:`prune`, but None is
            what the plan was made with.
        min_accuracy: accuracy to be kept.
        recover: ``full``, ``bias`` or ``none``.
        output: name of the output with the class scores.
        seed: of everything that is drawn.
        threads: onnxruntime threads.
        batch_size: samples per run.
        latency_batch: samples of a run whose latency is measured.
        eval_data: samples to report accuracy on; without it a part of ``data`` is held out.
        mean: channel means for image folders, on the 0..1 scale.
        std: channel standard deviations, likewise.
        cache: use and keep what was measured.
        progress: see :data:`~onnxprune.holdout.Progress`.

    Raises:
        PlanError: if the plan is damaged, or made for another model.
        OnnxpruneError: for everything else the user can act on.
        InternalError: if the result fails verification.
    """
    if not isinstance(plan, PruningPlan):
        plan = load_plan(plan)
    if plan.request is None:
        raise PlanError("the plan holds no request; give it one with dataclasses.replace")
    changes = {
        "max_drop": max_drop,
        "min_accuracy": min_accuracy,
        "recover": recover,
        "output": output,
        "seed": seed,
        "threads": threads,
        "batch_size": batch_size,
        "latency_batch": latency_batch,
    }
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    request = replace(plan.request, **given)
    original = _load(model)
    check_model(plan, original.sha256)
    study = _study(original, model, request, data, eval_data, mean, std, cache, progress)
    before = study.reported
    if plan.removals:
        check_removals(plan, study.removals)
        study = shortened(study, plan.removals)
    check_structure(plan, study.subject.structure)
    return measured(timed(study, execute(study, plan)), str(model), before, edited=True)


def sweep(
    model: str | Path,
    data: str | Path,
    ratios: Sequence[float] = RATIOS,
    *,
    eval_data: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    metric: str = "f-magnitude",
    recover: str = "full",
    output: str = "",
    exclude: Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
    batch_size: int = 32,
    cache: bool = True,
    progress: Progress = silent,
) -> Curve:
    """Measure what accuracy is left at many budgets of operations, from one calibration.

    Args:
        model: path of the model.
        data: as for :func:`prune`, like the settings that are not listed here.
        ratios: operations that remain, as fractions of the original's.
        eval_data: samples to report accuracy on; without it a part of ``data`` is held out.
        mean: channel means for image folders, on the 0..1 scale.
        std: channel standard deviations, likewise.
        metric: the criterion.
        recover: ``full``, ``bias`` or ``none``.
        output: name of the output with the class scores.
        exclude: globs over node and initializer names.
        seed: of everything that is drawn.
        threads: onnxruntime threads.
        batch_size: samples per run.
        cache: use and keep what was measured.
        progress: see :data:`~onnxprune.holdout.Progress`.

    Raises:
        OnnxpruneError: for everything the user can act on.
    """
    for ratio in ratios:
        if not 0.0 < ratio < 1.0:
            raise OnnxpruneError(f"ratios must lie between 0 and 1; got {ratio:g}")
    request = Request(
        macs=max(ratios),
        mode="channels",
        metric=metric,
        recover=recover,
        exclude=tuple(exclude),
        output=output,
        seed=seed,
        threads=threads,
        batch_size=batch_size,
    )
    original = _load(model)
    study = _study(original, model, request, data, eval_data, mean, std, cache, progress)
    return sweep_macs(study, ratios, str(model))


def _study(
    original: Model,
    path: str | Path,
    request: Request,
    data: str | Path | None,
    eval_data: str | Path | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    cache: bool,
    progress: Progress,
) -> Study:
    """Open the samples of a run and trace its model."""
    if (data is None) != request.random_inputs and not (request.lossless and data is None):
        got = f"{data}" if data is not None else "no samples"
        wanted = "random inputs, so give none" if request.random_inputs else "samples"
        raise CalibrationError(
            f"give either calibration samples or random_inputs: got {got}, the request asks for "
            f"{wanted}"
        )
    if request.empirical and data is None:
        raise CalibrationError("empirical needs calibration samples")
    check_provider(request.provider)
    class_scores(original, request.output)
    log = Log(progress)
    with log.stage("load"):
        samples = hold_out(
            data,
            eval_data,
            original,
            mean=mean,
            std=std,
            seed=request.seed,
            batch_size=request.batch_size,
        )
    location = data_target(default_target(Path(path))).name if len(original.files) > 1 else None
    return Study(original, samples, request, log, location, cache=cache)


def inspect(
    model: str | Path,
    data: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    exclude: Sequence[str] = (),
    allow_inexact: bool = False,
    dims: Mapping[str, int] | None = None,
    threads: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Inspection:
    """Find out what can be pruned from a model, and with samples what its rectifiers do.

    With samples also what cutting each group does to the outputs.

    Raises:
        OnnxpruneError: if the model or the samples cannot be used.
    """
    original = _load(model)
    if data is None:
        shapes = observe_inputs(original, None, seed=0, threads=threads, dims=dims)
        folded, shapes = separated(fold(original, shapes), shapes)
        structure = trace(folded, shapes, exclude=exclude, allow_inexact=allow_inexact)
        macs = cost.node_macs(folded, shapes)
        parts = find_removals(folded, shapes, structure, macs)
        return Inspection(structure, cost.measure(folded, shapes), macs, parts)
    request = Request(
        macs=0.5,
        exclude=tuple(exclude),
        allow_inexact=allow_inexact,
        threads=threads,
        batch_size=batch_size,
    )
    study = _study(original, model, request, data, None, mean, std, True, progress)
    structure, found = study.subject.structure, study.rectifiers
    trials = study.decider.sensitivities if structure.groups else []
    costs = study.given.cost, study.node_macs
    return Inspection(structure, *costs, study.removals, found, trials)


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
    class_scores(loaded, output)
    path, notes = evaluated(Path(data))
    dataset = open_dataset(path, loaded.inputs, mean=mean, std=std)
    size = loaded.fixed_batch or batch_size
    accuracy = measure_accuracy(
        loaded,
        dataset.batches(None, size),
        output=output,
        threads=threads,
        folders=folder_names(dataset),
        progress=progress("evaluate", len(dataset.labels)),
    )
    return replace(accuracy, warnings=(*notes, *skip_warnings(dataset.skipped)))


def _load(path: str | Path) -> Model:
    model = graph.load(path)
    require_fixed_channels(model)
    return model
