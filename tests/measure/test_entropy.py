"""Rectifiers are found whatever they are made of, and their entropy is that of EGP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from command import report_of, run, save, tiny_arrays, tiny_net, tiny_samples
from onnx import ModelProto, helper
from strategies import BATCH, Body, Net, apply, both, chain

from onnxprune.measure import calibrate, entropy
from onnxprune.model.model import load
from onnxprune.model.runner import Runner
from onnxprune.samples import dataset as data
from onnxprune.samples.dataset import UNSCALED
from onnxprune.samples.sources import hold_out
from onnxprune.structure.rectifiers import Rectifier, find_rectifiers

Array = np.ndarray[Any, Any]

same = apply("Identity")
by_erf = chain(apply("Div", np.sqrt(2.0)), apply("Erf"), apply("Add", 1.0))


def cubic(n: Net, x: str) -> str:
    """What the approximation of Gelu puts into Tanh."""
    cube = n.op("Mul", n.op("Mul", n.op("Mul", x, x), x), n.const(0.044715))
    return n.op("Mul", n.op("Add", x, cube), n.const(0.7978845608))


COMPOSED: dict[str, Body] = {
    "silu": both("Mul", same, apply("Sigmoid")),
    "silu reversed": both("Mul", apply("Sigmoid"), same),
    "gelu": chain(both("Mul", same, by_erf), apply("Mul", 0.5)),
    "gelu halves x": both("Mul", apply("Mul", 0.5), by_erf),
    "gelu halves phi": both("Mul", same, chain(by_erf, apply("Mul", 0.5))),
    "gelu by tanh": chain(
        both("Mul", apply("Mul", 0.5), chain(cubic, apply("Tanh"), apply("Add", 1.0)))
    ),
    "hard swish": chain(
        both("Mul", same, chain(apply("Add", 3.0), apply("Clip", 0.0, 6.0))), apply("Div", 6.0)
    ),
    "mish": both("Mul", same, chain(apply("Softplus"), apply("Tanh"))),
    "maximum": apply("Max", 0.0),
}
SINGLE: dict[str, Body] = {
    "relu": apply("Relu"),
    "leaky": apply("LeakyRelu", alpha=0.2),
    "prelu": lambda n, x: n.op("PRelu", x, n.const(n.positive(4, 1, 1))),
    "relu6": apply("Clip", 0.0, 6.0),
    "hard swish": apply("HardSwish"),
}
NEITHER: dict[str, Body] = {
    "sigmoid": apply("Sigmoid"),
    "square": both("Mul", same, same),
    "x times its mean": both("Mul", same, chain(apply("ReduceMean", axes=[1, 2, 3]))),
    "x gated by others": both("Mul", same, chain(apply("GlobalAveragePool"), apply("Sigmoid"))),
    "clip above -1": apply("Clip", -1.0, 1.0),
    "maximum with -1": apply("Max", -1.0),
    "scaled by channel": lambda n, x: n.op("Mul", x, n.const(n.positive(4, 1, 1))),
}


def model(body: Body) -> ModelProto:
    n = Net()
    x = n.conv(n.input(BATCH, 2, 4, 4), 2, 4, name="first")
    return n.model(n.conv(body(n, x), 4, 3))


def rectifiers(proto: ModelProto) -> tuple[oracle.Traced, list[Rectifier]]:
    t = oracle.traced(proto)
    return t, find_rectifiers(t.model, t.shapes, t.structure)


def shares(proto: ModelProto, inputs: Array, classes: int = 2) -> list[entropy.Activity]:
    """Run the product's pass over some samples."""
    t, found = rectifiers(proto)
    watched = entropy.watch(t.model, t.shapes, found)
    name = proto.graph.input[0].name
    labels = np.arange(len(inputs)) % classes
    batches = [
        data.Batch({name: part}, own)
        for part, own in zip(np.array_split(inputs, 3), np.array_split(labels, 3), strict=True)
    ]
    stats = calibrate.calibrate(watched, lambda: batches, classes=classes, runner=Runner(1))
    return entropy.activities(found, stats)


def values_at(proto: ModelProto, tensor: str, inputs: Array) -> Array:
    probe = ModelProto()
    probe.CopyFrom(proto)
    probe.graph.output.append(helper.make_empty_tensor_value_info(tensor))
    return oracle.run(probe, {proto.graph.input[0].name: inputs})[-1]


@pytest.mark.parametrize("body", [*COMPOSED.values(), *SINGLE.values()],
                         ids=[*COMPOSED, *(f"one {k}" for k in SINGLE)])  # fmt: skip
def test_the_state_is_the_sign_of_the_input(body: Body) -> None:
    proto = model(body)
    inputs = np.random.default_rng(0).normal(size=(7, 2, 4, 4)).astype(np.float32)
    (found,) = shares(proto, inputs)
    (conv,) = (n for n in proto.graph.node if n.name == "first")
    expected = (values_at(proto, conv.output[0], inputs) > 0).mean(axis=(0, 2, 3))
    assert found.rectifier.neurons == 4
    assert found.on == pytest.approx(expected, abs=1e-6)
    assert found.samples == 7
    assert 0 < expected.min() <= expected.max() < 1


@pytest.mark.parametrize("body", NEITHER.values(), ids=NEITHER)
def test_other_operators_are_no_rectifiers(body: Body) -> None:
    assert rectifiers(model(body))[1] == []


def test_tokens_have_their_neurons_on_the_last_axis() -> None:
    n = Net()
    x = n.op("Add", n.dense(n.input(BATCH, 5, 3), 3, 6), n.weight(6))
    proto = n.model(n.dense(COMPOSED["gelu"](n, x), 6, 2), rank=3)
    inputs = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    (found,) = shares(proto, inputs)
    assert found.on == pytest.approx((values_at(proto, x, inputs) > 0).mean(axis=(0, 1)), abs=1e-6)


def test_entropy_is_that_of_egp() -> None:
    on = np.array([0.0, 1.0, 0.5, 0.25, 0.25])
    quarter = 0.25 * 2 + 0.75 * np.log2(4 / 3)
    assert entropy.neuron_entropy(on) == pytest.approx([0, 0, 1, quarter, quarter])
    assert entropy.layer_entropy(on) == pytest.approx((1 + 2 * quarter) / 3)
    assert entropy.layer_entropy(np.array([0.0, 1.0])) == 0.0
    assert entropy.layer_entropy(np.array([])) == 0.0


@pytest.mark.parametrize("size", [3, 4, 7, 49, 113])
def test_always_is_exact(size: int) -> None:
    """The float mean of ones may miss one; a single position that differs must not be lost."""
    n = Net()
    x = n.op("Relu", n.op("Conv", n.input(BATCH, 3, size, size),
                          n.const(np.eye(3).reshape(3, 3, 1, 1)), name="first"))  # fmt: skip
    proto = n.model(n.conv(x, 3, 2))
    inputs = np.ones((6, 3, size, size), dtype=np.float32)
    inputs[:, 1] = -1
    inputs[4, 2, 1, 2] = -1
    (found,) = shares(proto, inputs)
    assert found.always_on.tolist() == [True, False, False]
    assert found.always_off.tolist() == [False, True, False]
    assert found.on[2] == pytest.approx(1 - 1 / (6 * size * size), rel=1e-6)
    assert found.entropy == pytest.approx(entropy.neuron_entropy(found.on[2:])[0])


# -- commands ------------------------------------------------------------------------------------


def test_inspect_shows_entropy(tmp_path: Path) -> None:
    path, samples = save(tiny_net(), tmp_path / "m.onnx"), tiny_samples(tmp_path / "d.npz")
    found = report_of("inspect", path, "--calib", samples)["rectifiers"]
    proto = onnx.load(path)
    split = hold_out(samples, None, load(path), scaling=UNSCALED, seed=0, batch_size=8)
    inputs = tiny_arrays()["x"][split.fit.rows]
    assert [f["node"] for f in found] == ["/act1", "/act2"]
    for entry, tensor in zip(found, ("conv1", "conv2"), strict=True):
        on = (values_at(proto, tensor, inputs) > 0).mean(axis=(0, 2, 3))
        assert entry["entropy"] == pytest.approx(entropy.layer_entropy(on), abs=1e-6)
        assert entry["on"] == pytest.approx(on.mean(), abs=1e-6)
        assert entry["always_on"] == (on == 1).sum()
        assert entry["always_off"] == (on == 0).sum()
    text = run("inspect", path, "--calib", samples).stdout
    assert f"rectifiers on {len(inputs)} samples" in text
    groups = report_of("inspect", path, "--calib", samples)["groups"]
    assert all(min(g["sensitivity"]["removed"]) > 0 for g in groups)
    assert all(min(g["sensitivity"]["divergence"]) >= 0 for g in groups)
    assert f"{found[0]['entropy']:.3f}" in text
    assert report_of("inspect", path)["rectifiers"] is None


def test_a_model_without_rectifiers_is_no_problem(tmp_path: Path) -> None:
    path = save(tiny_net(between="Sigmoid"), tmp_path / "m.onnx")
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.op_type = {"Relu": "Sigmoid"}.get(node.op_type, node.op_type)
    onnx.save(proto, path)
    samples = tiny_samples(tmp_path / "d.npz")
    assert report_of("inspect", path, "--calib", samples)["rectifiers"] == []
    assert "no rectifiers" in run("inspect", path, "--calib", samples).stdout
    out = tmp_path / "o.onnx"
    report = report_of(path, "--calib", samples, "--sparsity", 0.3, "-o", out)
    assert report["rectifiers"] == []


def test_inspect_refuses_bad_samples(tmp_path: Path) -> None:
    path = save(tiny_net(), tmp_path / "m.onnx")
    result = run("inspect", path, "--calib", tmp_path / "missing.npz")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
