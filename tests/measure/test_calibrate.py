"""Calibration: statistics gathered inside the graph, in as many passes as the memory asks for."""

from __future__ import annotations

import numpy as np
import pytest
from command import tiny_arrays, tiny_net

from onnxprune.measure import calibrate
from onnxprune.measure.statistics import ActivationStats
from onnxprune.model.model import Model
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.run import records
from onnxprune.samples.dataset import Batch

POINTS = [("act1", 1), ("conv2", 1), ("flat", 1)]


def gathered(calls: list[int] | None = None) -> dict[tuple[str, int], ActivationStats]:
    model, arrays = Model(tiny_net().model()), tiny_arrays()
    batches = [
        Batch({"x": arrays["x"][k : k + 20]}, 500 * arrays["y"][k : k + 20]) for k in (0, 20, 40)
    ]

    def read() -> list[Batch]:
        if calls is not None:
            calls.append(1)
        return batches

    shapes = observe(model, {"x": arrays["x"][:4]}, runner=Runner(1))
    watched = calibrate.Watched(model, shapes, POINTS)
    return calibrate.calibrate(watched, read, classes=3, squares=True, runner=Runner(1))


@pytest.mark.parametrize(("memory", "passes"), [(1 << 30, 1), (16 * 3 * 16, 2), (1, 3)])
def test_passes_change_nothing(monkeypatch, memory, passes):
    expected, calls = gathered(), []
    monkeypatch.setattr(calibrate, "MEMORY", memory)
    found = gathered(calls)
    assert len(calls) == passes
    assert list(found) == POINTS
    for point in POINTS:
        for name in ("labels", "count", "mean", "m2", "square"):
            a, b = getattr(found[point], name), getattr(expected[point], name)
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_statistics_survive_the_cache():
    stats = gathered()
    back = records.to_stats(records.from_stats(stats, POINTS), POINTS)
    assert list(back) == POINTS
    assert back[POINTS[0]].labels.tolist() == [0, 500, 1000]
    for point in POINTS:
        for name in ("labels", "count", "mean", "m2", "square"):
            np.testing.assert_array_equal(getattr(back[point], name), getattr(stats[point], name))


def test_points_that_never_change_are_no_reason_to_refuse(monkeypatch):
    """As long as some other point, in another pass, does."""
    monkeypatch.setattr(calibrate, "MEMORY", 1)
    model = tiny_net().model()
    for tensor in model.graph.initializer:
        if tensor.name == "conv2.w":
            tensor.raw_data = bytes(len(tensor.raw_data))
    arrays = tiny_arrays()
    shapes = observe(Model(model), {"x": arrays["x"][:4]}, runner=Runner(1))
    batch = Batch({"x": arrays["x"]}, arrays["y"])
    found = calibrate.calibrate(
        calibrate.Watched(Model(model), shapes, [("conv2", 1), ("act1", 1)]),
        lambda: [batch],
        classes=3,
        runner=Runner(1),
    )
    assert found["conv2", 1].m2.max() < 1e-9
