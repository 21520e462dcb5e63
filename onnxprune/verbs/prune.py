"""Prune: decide, carry out, prove, recover and measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxprune.log import Progress, silent
from onnxprune.model.session import PROVIDER
from onnxprune.plans.choices import Mode, settled
from onnxprune.plans.request import Request
from onnxprune.report.result import PruneResult, assemble_result
from onnxprune.run.open import _load, _study
from onnxprune.search.strategies import search


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
        sparsity: see :class:`~onnxprune.plans.request.Request`, like the other settings; give
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
        cache: use and keep what was measured (see :mod:`onnxprune.run.cache`).
        progress: see :data:`~onnxprune.log.Progress`.

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
    before = study.run.reported
    with study.run.log.stage("search"):
        outcome = search(study)
    return assemble_result(outcome, str(model), before)
