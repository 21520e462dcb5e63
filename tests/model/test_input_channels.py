"""Dynamic axes of inputs: only those along which a fixed number is read are channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command import done, report_of
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.input_channels import require_fixed_channels
from onnxprune.model.model import Model


def model(shape: list[Any], *nodes: onnx.NodeProto, **constants: Any) -> Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], values)
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def weights(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def op(kind: str, inputs: str, output: str, **how: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], f"/{output}", **how)


ONE = np.array([1])
W1, W2, CONV1D = weights(3, 5), weights(4, 3, 3, 3), weights(4, 1, 3)

FREE = {
    "audio": model(
        ["N", "T"], op("Unsqueeze", "x one", "u"), op("Conv", "u w", "y"), one=ONE, w=CONV1D
    ),
    "audio, squeezed": model(
        ["N", 1, "T"], op("Squeeze", "x one", "s"), op("Unsqueeze", "s one", "u"),
        op("Conv", "u w", "y"), one=ONE, w=CONV1D,
    ),
    "spectrum": model(
        ["N", "T"], op("STFT", "x step window", "y"), step=np.array(4), window=weights(8)
    ),
    "tokens": model(["N", "T", 3], op("MatMul", "x w", "y"), w=W1),
    "frames": model(["N", 3, "T"], op("Conv", "x w", "y"), w=weights(4, 3, 3)),
    "frames last": model(
        ["N", "T", 3], op("Transpose", "x", "t", perm=[0, 2, 1]), op("Conv", "t w", "y"),
        w=weights(4, 3, 3),
    ),
    "pixels last": model(
        ["N", "H", "W", 3], op("Transpose", "x", "t", perm=[0, 3, 1, 2]), op("Conv", "t w", "y"),
        w=W2,
    ),
    "many channels last": model(["N", "H", "W", 3], op("MatMul", "x w", "y"), w=W1),
    "set": model(["N", "M"], op("ReduceMean", "x", "y", axes=[1])),
    "recurrent": model(
        ["T", "N", 3], helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2),
        w=weights(1, 8, 3), r=weights(1, 8, 2),
    ),
    "normalised": model(
        ["N", "T", 3], op("Sub", "x mean", "s"), op("MatMul", "s w", "y"), mean=weights(3), w=W1
    ),
}  # fmt: skip

FIXED = {
    "images": (model(["N", "C", 8, 8], op("Conv", "x w", "y"), w=W2), 3),
    "grouped": (model(["N", "C", 8, 8], op("Conv", "x w", "y", group=2), w=weights(4, 3, 3, 3)), 6),
    "transposed": (model(["N", -1, 8, 8], op("ConvTranspose", "x w", "y"), w=W2), 4),
    "rows": (model(["N", "C"], op("MatMul", "x w", "y"), w=W1), 3),
    "rows, Gemm": (model(["N", "C"], op("Gemm", "x w", "y", transB=1), w=W1), 5),
    "rows, scaled": (model(["N", ""], op("Mul", "x s", "y"), s=weights(3)), 3),
    "frames": (
        model(["N", "C", "T"], op("Relu", "x", "r"), op("Conv", "r w", "y"), w=CONV1D[:, [0, 0]]),
        2,
    ),
    "normalised": (
        model(["N", "C", 8, 8], op("Sub", "x m", "s"), op("Relu", "s", "y"), m=weights(3, 1, 1)),
        3,
    ),
    "batch norm": (
        model(["N", "C", 8, 8], op("BatchNormalization", "x s s s s", "y"), s=np.abs(weights(3))),
        3,
    ),
    "turned": (
        model(
            ["N", "C", 8], op("Transpose", "x", "t", perm=[0, 2, 1]), op("MatMul", "t w", "y"), w=W1
        ),
        3,
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_axes_of_any_size_are_no_channels(name: str) -> None:
    require_fixed_channels(FREE[name])


@pytest.mark.parametrize("name", FIXED)
def test_channels_have_to_be_fixed(name: str) -> None:
    given, count = FIXED[name]
    with pytest.raises(ModelError, match=rf"'x' has a dynamic channel.* reads {count} channels"):
        require_fixed_channels(given)


@pytest.mark.parametrize("mode", ["channels", "weights", "auto"])
def test_raw_audio_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    audio = model(
        ["N", "T"],
        op("Unsqueeze", "x one", "u"),
        op("Conv", "u w1", "c1", strides=[4]),
        op("Relu", "c1", "r1"),
        op("Conv", "r1 w2", "c2", strides=[4]),
        op("Relu", "c2", "r2"),
        op("GlobalAveragePool", "r2", "p"),
        op("Flatten", "p", "f"),
        op("Gemm", "f w3", "y"),
        one=ONE, w1=weights(8, 1, 9), w2=weights(8, 8, 5), w3=weights(8, 3),
    )  # fmt: skip
    audio.proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "N"
    audio.proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 3
    onnx.save(audio.proto, "audio.onnx")
    x = np.random.default_rng(0).standard_normal((60, 200)).astype(np.float32)
    np.savez("d.npz", x=x, y=np.arange(60) % 3)
    done("audio.onnx", "--random-inputs", "--sparsity", 0.4, "--mode", mode, "-o", "r.onnx")
    report = report_of("audio.onnx", "--calib", "d.npz", "--sparsity", 0.4, "--mode", mode)
    assert report["sparsity"]["achieved"] >= 0.4
    for path in ("r.onnx", "audio.pruned.onnx"):
        for rows, length in ((1, 100), (5, 333)):
            feeds = {"x": np.ones((rows, length), np.float32)}
            (y,) = ort.InferenceSession(path).run(None, feeds)
            assert y.shape == (rows, 3)
            assert np.isfinite(y).all()
