"""A step behind the cut is one file and one entry in a list, and is used from the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from command import report_of

from onnxprune.clean.clean_up import STEPS
from onnxprune.clean.steps import Seen, Step
from onnxprune.model.model import Model, normalise

ROOT = Path(__file__).parents[2]


def mark(seen: Seen) -> tuple[Model, Counter[str]]:
    """Write a comment into the first node, once."""
    proto = onnx.ModelProto()
    proto.CopyFrom(seen.model.proto)
    if proto.graph.node[0].doc_string == "toy":
        return seen.model, Counter()
    proto.graph.node[0].doc_string = "toy"
    return normalise(proto), Counter(marked=1)


@pytest.fixture
def toy(request: pytest.FixtureRequest) -> Iterator[None]:
    step = Step("toy", mark, tolerance=request.param)
    STEPS.append(step)
    yield
    STEPS.remove(step)


def pruned(out: Path) -> dict[str, object]:
    model, data = ROOT / "models/digits_lenet300.onnx", ROOT / "calibration/digits"
    settings = ("--mode", "channels", "--sparsity", "0.5", "--recover", "none", "--force")
    found: dict[str, object] = report_of("prune", model, "--calib", data, *settings, "-o", out)[
        "clean_up"
    ]
    return found


@pytest.mark.parametrize("toy", [1e-2], indirect=True)
@pytest.mark.usefixtures("toy")
def test_a_step_is_used_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    assert pruned(out)["toy"] == {"marked": 1}
    assert onnx.load(out).graph.node[0].doc_string == "toy"


@pytest.mark.parametrize("toy", [-1.0], indirect=True)
@pytest.mark.usefixtures("toy")
def test_a_step_beyond_its_own_tolerance_is_dropped(tmp_path: Path) -> None:
    found = pruned(tmp_path / "small.onnx")
    assert found["dropped"] == ["toy"]
    assert "toy" not in found
