"""Open a run: its model and its samples."""

from __future__ import annotations

from pathlib import Path

from onnxprune.errors import CalibrationError
from onnxprune.files import data_target, default_target
from onnxprune.log import Log, Progress
from onnxprune.measure.class_scores import class_scores
from onnxprune.model import model as graph
from onnxprune.model.input_channels import require_fixed_channels
from onnxprune.model.model import Model
from onnxprune.model.session import check_provider
from onnxprune.plans.reading import Reading
from onnxprune.plans.request import Request
from onnxprune.run.run import Run
from onnxprune.run.study import Study
from onnxprune.samples.dataset import Scaling
from onnxprune.samples.sources import hold_out


def open_model(path: str | Path) -> Model:
    """Read a model that inputs can be made or read for.

    Raises:
        ModelError: if it cannot be read, or a number of channels is open.
    """
    model = graph.load(path)
    require_fixed_channels(model)
    return model


def open_study(
    original: Model,
    data: str | Path | None,
    request: Request,
    reading: Reading,
    progress: Progress,
) -> Study:
    """Open the samples of a run and trace its model.

    Args:
        original: the model, see :func:`open_model`.
        data: path of the samples; None for a request that needs none.
        request: what the user asked for.
        reading: how the samples are read.
        progress: see :data:`~onnxprune.log.Progress`.

    Raises:
        OnnxpruneError: if the samples or the model cannot be used.
    """
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
            reading.eval_data,
            original,
            scaling=Scaling.of(reading.mean, reading.std),
            seed=request.seed,
            batch_size=request.batch_size,
        )
    path = original.files[0]
    location = data_target(default_target(path)).name if len(original.files) > 1 else None
    return Study.of(Run(original, samples, request, log, location, cache=reading.cache))
