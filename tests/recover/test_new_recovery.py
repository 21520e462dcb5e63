"""A recovery is one file and one entry, and is used from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import done, run, save, tiny_net, tiny_samples

from onnxprune.model.edit import with_metadata
from onnxprune.model.model import Model
from onnxprune.plans.choices import RECOVERIES, Recovery
from onnxprune.recover.ladder import Ladder
from onnxprune.recover.recoveries import steps_of
from onnxprune.recover.task import Step, Task


def sign(ladder: Ladder, task: Task) -> None:
    """Offer a model that computes the same, and say so."""
    assert len(task.subset)
    ladder.warnings.append("this model is signed")
    ladder.offer("sign", with_metadata(ladder.model, {"toy": "signed"}))


def spoil(ladder: Ladder, _: Task) -> None:
    """Offer a model whose scores are not finite."""
    proto = onnx.ModelProto()
    proto.CopyFrom(ladder.model.proto)
    for tensor in proto.graph.initializer:
        if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(np.nan)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    if not ladder.offer("spoil", Model(proto)):
        ladder.refuse("what is not a number")


def dawdle(ladder: Ladder, _: Task) -> None:
    """Offer what there is, for results only."""
    ladder.offer("dawdle", ladder.model)


TOY = (Step(sign), Step(spoil), Step(dawdle, in_trials=False))


@pytest.fixture
def toy() -> Iterator[None]:
    RECOVERIES["toy"] = Recovery(f"{__name__}:TOY", adds_biases=False)
    yield
    del RECOVERIES["toy"]


def arguments(tmp_path: Path) -> tuple[str, ...]:
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    save(tiny_net(), model)
    tiny_samples(data)
    out = ("-o", str(tmp_path / "small.onnx"), "--report", str(tmp_path / "r.json"))
    goal = ("--mode", "channels", "--sparsity", "0.3", "--recover", "toy")
    return ("prune", str(model), "--calib", str(data), *goal, *out, "--force")


@pytest.mark.usefixtures("toy")
def test_a_recovery_is_used_from_the_command_line(tmp_path: Path) -> None:
    result = done(*arguments(tmp_path))
    assert "this model is signed" in result.stderr
    assert "what is not a number was not used" in result.stderr
    steps = json.loads((tmp_path / "r.json").read_text())["recovery"]["steps"]
    taken = {step["name"]: step["accepted"] for step in steps}
    assert taken == {"sign": True, "spoil": False, "dawdle": True}
    small = onnx.load(tmp_path / "small.onnx")
    assert {p.key: p.value for p in small.metadata_props}["toy"] == "signed"


def test_a_recovery_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    result = run(*arguments(tmp_path))
    assert result.exit_code == 2
    assert "'toy' is not one of 'none', 'bias', 'full'" in result.stderr


@pytest.mark.parametrize("name", RECOVERIES)
def test_every_recovery_names_its_steps(name: str) -> None:
    recovery = RECOVERIES[name]
    steps = steps_of(recovery)
    assert all(isinstance(step, Step) for step in steps)
    assert recovery.needs_samples == bool(steps)
