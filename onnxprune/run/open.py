"""Open a run: its model and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import CalibrationError
from onnxprune.files import data_target, default_target
from onnxprune.log import Log, Progress
from onnxprune.measure.class_scores import class_scores
from onnxprune.model import model as graph
from onnxprune.model.input_channels import require_fixed_channels
from onnxprune.model.model import Model
from onnxprune.model.session import check_provider
from onnxprune.plans.request import Request
from onnxprune.run.run import Run
from onnxprune.run.study import Study
from onnxprune.samples.sources import hold_out


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
    return Study.of(Run(original, samples, request, log, location, cache=cache))


def _load(path: str | Path) -> Model:
    model = graph.load(path)
    require_fixed_channels(model)
    return model
