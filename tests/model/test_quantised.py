"""Quantised files: what counts, what can leave, what makes up for it, what the rest is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from strategies import Net

import onnxprune
from onnxprune.errors import BudgetError, InternalError, ModelError
from onnxprune.linear.requantise import pack, unpack
from onnxprune.model.cost import count_nonzero, measure
from onnxprune.model.edit import edit, rebuild
from onnxprune.model.model import Model, load, normalise
from onnxprune.model.observe import observe
from onnxprune.model.qoperators import joined, separated
from onnxprune.model.quantised import weight_values
from onnxprune.model.runner import Runner
from onnxprune.model.session import Session, optimised, quantize_dynamic
from onnxprune.model.storage import nbytes
from onnxprune.run import execute
from onnxprune.samples.inputs import observe_inputs
from onnxprune.structure.trace import trace

RNG = np.random.default_rng(0)
CLASSES, WIDTH = 4, 16
CENTRES = RNG.normal(size=(CLASSES, WIDTH)).astype(np.float32)
LABELS = np.arange(240) % CLASSES
SAMPLES = (CENTRES[LABELS] + 0.4 * RNG.normal(size=(240, WIDTH))).astype(np.float32)


def perceptron(op_type: str = "Gemm") -> ModelProto:
    """Random features, and a last layer that was fitted to the classes."""
    n, wide = Net(), 48
    layers = [(n.weight(WIDTH, wide), n.weight(wide)), (n.weight(wide, wide), n.weight(wide))]
    values = {t.name: numpy_helper.to_array(t) for t in n.constants}
    x, hidden = n.input("batch", WIDTH), SAMPLES
    for weight, bias in layers:
        x = n.op("Relu", layer(n, op_type, x, weight, bias))
        hidden = np.maximum(hidden @ values[weight] + values[bias], 0)
    targets = np.eye(CLASSES)[LABELS] * 4
    solution = np.linalg.lstsq(np.c_[hidden, np.ones(len(hidden))], targets, rcond=None)[0]
    last = n.const(solution[:-1].astype(np.float32)), n.const(solution[-1].astype(np.float32))
    return n.model(layer(n, op_type, x, *last), rank=2)


def layer(n: Net, op_type: str, x: str, weight: str, bias: str) -> str:
    if op_type == "Gemm":
        return n.op("Gemm", x, weight, bias)
    return n.op("Add", n.op("MatMul", x, weight), bias)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = iter([{"x0": SAMPLES[k : k + 20]} for k in range(0, 120, 20)])

    def get_next(self) -> Any:
        return next(self._left, None)


def quantised(path: Path, form: str, op_type: str = "Gemm", **how: Any) -> Path:
    """Quantise weights and activations as onnxruntime does."""
    onnx.save(perceptron(op_type), path.with_suffix(".float.onnx"))
    how = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8} | how
    quantize_static(
        path.with_suffix(".float.onnx"), path, _Reader(), quant_format=QuantFormat[form], **how
    )
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x0=SAMPLES, y=LABELS)
    return tmp_path / "data.npz"


def operators(proto: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


FORMS = {
    "QDQ": ("QDQ", "Gemm", {}),
    "QDQ, each channel": ("QDQ", "Gemm", {"per_channel": True}),
    "QDQ, uint8 weights": ("QDQ", "Gemm", {"weight_type": QuantType.QUInt8}),
    "QDQ, biases behind": ("QDQ", "MatMul", {}),
    "QDQ, int8 activations": ("QDQ", "Gemm", {"activation_type": QuantType.QInt8}),
    "QOperator": ("QOperator", "Gemm", {}),
    "QOperator, each channel": ("QOperator", "Gemm", {"per_channel": True}),
    "QOperator, biases behind": ("QOperator", "MatMul", {}),
}


@pytest.mark.parametrize(("form", "op_type", "how"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("mode", ["channels", "weights"])
def test_a_quantised_model_stays_accurate_and_quantised(
    form: str, op_type: str, how: dict[str, Any], mode: Any, tmp_path: Path, data: Path
) -> None:
    path = quantised(tmp_path / "q.onnx", form, op_type, **how)
    result = onnxprune.prune(path, data, sparsity=0.5, mode=mode, cache=False, threads=1)
    before, after = result.report.before, result.report.after
    assert result.report.achieved >= 0.5
    assert before.accuracy is not None
    assert after.accuracy is not None
    assert before.accuracy.value > 0.9
    assert after.accuracy.value >= before.accuracy.value - 0.05
    assert before.cost.weights == WIDTH * 48 + 48 * 48 + 48 * CLASSES
    assert operators(result.model) == operators(onnx.load(path)), "integers stay integers"


@pytest.mark.parametrize("recover", ["bias", "none"])
def test_quantised_biases_are_corrected(recover: str, tmp_path: Path, data: Path) -> None:
    path = quantised(tmp_path / "q.onnx", "QDQ")
    result = onnxprune.prune(
        path, data, sparsity=0.3, mode="channels", recover=recover, cache=False, threads=1
    )
    steps = result.report.recovery["steps"]
    assert [s["name"] for s in steps] == (["bias"] if recover == "bias" else [])
    assert operators(result.model) == operators(onnx.load(path))


def test_what_was_not_fitted_keeps_its_integers(tmp_path: Path) -> None:
    model = load(quantised(tmp_path / "q.onnx", "QDQ", per_channel=True))
    graph = edit(model)
    unpack(graph)
    floats = rebuild(graph, model)
    held = {t.data_type for t in floats.proto.graph.initializer if len(t.dims) == 2}
    assert held == {TensorProto.FLOAT}
    again = pack(floats, model)
    assert operators(again.proto) == operators(model.proto)
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in m.proto.graph.initializer}
        for m in (model, again)
    )
    weights = [name for name, value in old.items() if value.dtype == np.int8 and value.ndim == 2]
    assert weights
    assert all(np.array_equal(old[name], new[name]) for name in weights)


def test_integer_operators_are_what_they_were_when_nothing_changes(tmp_path: Path) -> None:
    for how in ({"weight_type": QuantType.QUInt8}, {"per_channel": True}):
        model = load(quantised(tmp_path / "q.onnx", "QOperator", **how))
        shapes = observe(model, {"x0": SAMPLES[:4]}, runner=Runner(1))
        floats, known = separated(model, shapes)
        assert floats is not model
        made = {o for node in floats.proto.graph.node for o in node.output}
        assert made <= known.first.keys()
        again = joined(floats, model)
        assert list(again.proto.graph.node) == list(model.proto.graph.node)


def test_integer_operators_compute_what_their_float_form_does(tmp_path: Path) -> None:
    model = load(quantised(tmp_path / "q.onnx", "QOperator", weight_type=QuantType.QUInt8))
    floats, _ = separated(model, observe(model, {"x0": SAMPLES[:4]}, runner=Runner(1)))
    assert {"Gemm"} <= operators(floats.proto).keys()
    for optimize in (False, True):
        expected, got = (
            Session(m.proto, threads=1, optimize=optimize).run({"x0": SAMPLES})[0]
            for m in (model, floats)
        )
        step = np.diff(np.unique(expected)).min()
        assert np.abs(expected - got).max() <= 1.01 * step, "more than rounding"


def test_integer_operators_that_are_written_wrong_are_caught(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(model: Model, like: Model) -> Model:
        written = joined(model, like)
        for node in written.proto.graph.node:
            if node.op_type == "QGemm":
                node.input[1], node.input[7] = node.input[7], node.input[1]
        return written

    path = quantised(tmp_path / "q.onnx", "QOperator")
    monkeypatch.setattr(execute, "joined", swapped)
    with pytest.raises(InternalError, match="integer operators differs"):
        onnxprune.prune(path, data, sparsity=0.5, mode="channels", cache=False, threads=1)


# -- what integers stand for -------------------------------------------------------------------


def dequantised(dtype: str, axis: int, block: int, *, zero: bool) -> ModelProto:
    kind = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype.upper()))
    n, shape = Net(opset=21), [8, 6]
    small = dtype.endswith("4")
    counts = list(shape)
    counts[axis] = -(-shape[axis] // block) if block else shape[axis]
    counts = counts if block else [shape[axis]]

    def integers(*size: int) -> str:
        low = 0 if dtype[0] == "u" else -7
        values = n.rng.integers(low, 8 if small else 100, size=size)
        return n.const(values.astype(kind), kind)

    operands = [integers(*shape), n.const(n.positive(*counts))]
    operands += [integers(*counts)] if zero else []
    how = {"axis": axis} | ({"block_size": block} if block else {})
    w = n.op("DequantizeLinear", *operands, **how)
    return n.model(w, n.op("MatMul", n.input("batch", 8), w), rank=2)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4", "int16"])
@pytest.mark.parametrize(("axis", "block"), [(0, 0), (1, 0), (0, 4), (0, 3), (1, 2)])
@pytest.mark.parametrize("zero", [False, True])
def test_weights_are_what_onnxruntime_dequantises(
    dtype: str, axis: int, block: int, zero: bool
) -> None:
    model = normalise(dequantised(dtype, axis, block, zero=zero))
    expected = Session(model.proto, threads=1).run({"x0": np.ones((1, 8), np.float32)})[0]
    name = model.proto.graph.node[0].input[0]
    got = weight_values(model, [name])[name]
    assert np.allclose(got, expected, atol=1e-6)
    assert count_nonzero(model) == np.count_nonzero(expected)
    again = rebuild(edit(model), model)
    for old, new in zip(
        sorted(model.proto.graph.initializer, key=lambda t: t.name),
        sorted(again.proto.graph.initializer, key=lambda t: t.name),
        strict=True,
    ):
        assert np.array_equal(numpy_helper.to_array(old), numpy_helper.to_array(new))
    bits = 4 if dtype.endswith("4") else 16 if dtype == "int16" else 8
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    assert nbytes(tensor) == 8 * 6 * bits // 8


def in_blocks(path: Path, dtype: str = "int4") -> Path:
    """Quantise the weights of a perceptron in blocks of eight inputs."""
    proto = perceptron("MatMul")
    kind = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype.upper()))
    tensors = {t.name: t for t in proto.graph.initializer}
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "MatMul":
            name = node.input[1]
            w = numpy_helper.to_array(tensors[name])
            scale = np.abs(w.reshape(-1, 8, w.shape[1])).max(axis=1) / 7
            whole = np.rint(w / scale.repeat(8, axis=0)).astype(np.int8).astype(kind)
            tensors[name].CopyFrom(numpy_helper.from_array(whole, name))
            proto.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [name, f"{name}_scale"], [f"{name}_w"],
                    axis=0, block_size=8,
                )
            )  # fmt: skip
            node.input[1] = f"{name}_w"
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.opset_import[0].version, proto.ir_version = 21, 10
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("mode", ["channels", "weights"])
def test_weights_in_blocks_leave(mode: Any, tmp_path: Path, data: Path) -> None:
    path = in_blocks(tmp_path / "blocks.onnx")
    result = onnxprune.prune(path, data, sparsity=0.3, mode=mode, cache=False, threads=1)
    assert result.report.achieved >= 0.3
    after = normalise(result.model)
    for node in after.proto.graph.node:
        if node.op_type == "DequantizeLinear":
            shapes = {t.name: t.dims for t in after.proto.graph.initializer}
            weight, scale = (shapes[name] for name in node.input)
            assert [weight[0] // 8, weight[1]] == list(scale)
    before, now = result.report.before.accuracy, result.report.after.accuracy
    assert before is not None
    assert now is not None
    assert now.value >= before.value - 0.05


# -- what cannot be pruned is named ------------------------------------------------------------


def packed(path: Path) -> Path:
    """A product whose weights are packed by four bits, in front of a small layer."""
    n, wide = Net(), 64
    x = n.op("Relu", n.gemm(n.input("batch", WIDTH), WIDTH, 8, name="first"))
    x = n.op("Relu", n.gemm(x, 8, wide, name="second"))
    bits = n.const(n.rng.integers(0, 256, size=(wide, wide // 32, 16)), "uint8")
    scale = n.const(n.positive(wide * wide // 32) * 0.01)
    x = n.op(
        "MatMulNBits", x, bits, scale, K=wide, N=wide, bits=4, block_size=32,
        name="packed", domain="com.microsoft",
    )  # fmt: skip
    onnx.save(n.model(n.gemm(n.op("Relu", x), wide, CLASSES, name="last"), rank=2), path)
    return path


def test_packed_weights_count_and_are_named(tmp_path: Path, data: Path) -> None:
    path = packed(tmp_path / "packed.onnx")
    found = onnxprune.inspect(path)
    assert found.cost.weights == WIDTH * 8 + 8 * 64 + 64 * 64 + 64 * CLASSES
    assert found.cost.macs == found.cost.weights
    assert any(f.node == "packed" and "packs weights" in f.reason for f in found.structure.frozen)
    reasons = {r.reason: r.weights for r in found.structure.frozen_by_reason()}
    assert reasons[next(r for r in reasons if "packs weights" in r)] == 64 * 64
    with pytest.raises(BudgetError, match=r"best achievable is 0\.\d+.*MatMulNBits.*'packed'"):
        onnxprune.prune(path, data, sparsity=0.8, mode="channels", cache=False, threads=1)
    result = onnxprune.prune(path, data, sparsity=0.02, mode="weights", cache=False, threads=1)
    assert any("1 MatMulNBits" in w and "% of the file" in w for w in result.report.warnings)


def test_dynamically_quantised_layers_are_listed(tmp_path: Path, data: Path) -> None:
    quantize_dynamic(perceptron("MatMul"), tmp_path / "dynamic.onnx")
    found = onnxprune.inspect(tmp_path / "dynamic.onnx")
    weights = WIDTH * 48 + 48 * 48 + 48 * CLASSES
    assert found.cost.weights == weights
    assert len(found.structure.frozen) == 3
    assert [r.weights for r in found.structure.frozen_by_reason()] == [weights]
    for how in ({"mode": "channels"}, {"mode": "weights"}, {"mode": "auto"}):
        with pytest.raises(BudgetError, match="best achievable is 0, since 3 layers with 3,264"):
            onnxprune.prune(tmp_path / "dynamic.onnx", data, sparsity=0.3, cache=False, **how)


def test_an_operator_without_a_rule_is_named_for_its_constants(tmp_path: Path) -> None:
    n = Net()
    x = n.op("CDist", n.gemm(n.input(4, WIDTH), WIDTH, 8), n.weight(64, 8), name="distances",
             metric="sqeuclidean", domain="com.microsoft")  # fmt: skip
    onnx.save(n.model(x, rank=2), tmp_path / "m.onnx")
    found = onnxprune.inspect(tmp_path / "m.onnx").structure
    assert [(u.node, u.weights, u.bytes) for u in found.untouched] == [("distances", 512, 2048)]
    assert "distances" in {f.node for f in found.frozen}


def test_files_laid_out_for_one_machine_are_refused_for_that(tmp_path: Path) -> None:
    n = Net()
    y = n.op("Relu", n.conv(n.input("batch", 16, 8, 8), 16, 32, 3))
    y = n.op("Flatten", n.op("GlobalAveragePool", n.conv(y, 32, 32, 3)))
    proto = optimised(n.model(y, rank=2))
    if not any(node.domain == "com.microsoft.nchwc" for node in proto.graph.node):
        pytest.skip("onnxruntime has no blocked layout on this machine")
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(BudgetError, match=r"one machine by onnxruntime.*it was made from"):
        onnxprune.prune(tmp_path / "m.onnx", sparsity=0.3, random_inputs=True, cache=False)


def test_an_operator_that_another_machine_has_is_refused_for_that(tmp_path: Path) -> None:
    n = Net()
    x = n.op("NhwcFusedConv", n.input("batch", 8, 8, 3), n.weight(4, 3, 1, 1),
             domain="com.microsoft")  # fmt: skip
    onnx.save(n.model(x, rank=4), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="use the file it was made from"):
        onnxprune.inspect(tmp_path / "m.onnx")


@pytest.mark.parametrize("mode", ["channels", "weights", "auto"])
def test_a_model_of_fused_layers_alone_prunes(mode: Any, tmp_path: Path, data: Path) -> None:
    n = Net()
    x = n.op("FusedGemm", n.input("batch", WIDTH), n.weight(WIDTH, 32), n.weight(32),
             activation="Relu", domain="com.microsoft")  # fmt: skip
    x = n.op("FusedGemm", x, n.weight(32, CLASSES), n.weight(CLASSES),
             activation="Relu", domain="com.microsoft")  # fmt: skip
    onnx.save(n.model(x, rank=2), tmp_path / "m.onnx")
    result = onnxprune.prune(
        tmp_path / "m.onnx", data, sparsity=0.4, mode=mode, cache=False, threads=1
    )
    assert result.report.achieved >= 0.4


def test_quantised_costs_are_those_of_the_original(tmp_path: Path) -> None:
    """Weights and operations, in every form, also where they are separated."""
    path = tmp_path / "q.onnx"
    whole = normalise(perceptron())
    expected = measured(whole)
    for form in ("QDQ", "QOperator"):
        model = load(quantised(path, form, per_channel=True))
        cost = measured(model)
        assert (cost.weights, cost.macs) == (expected.weights, expected.macs)
        floats, shapes = separated(model, observe_inputs(model, None, seed=0, runner=Runner(1)))
        assert len(trace(floats, shapes).groups) == 2


def measured(model: Model) -> Any:
    return measure(model, observe(model, {"x0": SAMPLES[:2]}, runner=Runner(1)))
