"""Models with external data, and models that are handled without their weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from strategies import BATCH, Net

import onnxprune
from onnxprune import OnnxpruneError, OutputError
from onnxprune.files import write_files
from onnxprune.model import storage

SETTINGS = {"sparsity": 0.5, "random_inputs": True}


def net() -> onnx.ModelProto:
    """Three layers; two of the weights are large enough to leave the file."""
    n = Net(17)
    x = n.op("Relu", n.gemm(n.input(BATCH, 16), 16, 64))
    return n.model(n.gemm(n.op("Relu", n.gemm(x, 64, 64)), 64, 3), rank=2)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    path = tmp_path / "ext.onnx"
    onnx.save(net(), path, save_as_external_data=True, location="ext.bin", size_threshold=0)
    return path


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    path = tmp_path / "one.onnx"
    onnx.save(net(), path)
    return path


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handle every model as one with gigabytes of weights."""
    monkeypatch.setattr(storage, "HEAVY", 0)
    monkeypatch.setattr(storage, "MOST_BYTES", 0)


def values(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def outputs(path: Path) -> np.ndarray:
    """Run a file as a user would: onnxruntime finds the data by itself."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {i.name: np.ones((2, 16), np.float32) for i in session.get_inputs()}
    return np.asarray(session.run(None, feeds)[0])


def test_external_stays_external(external: Path) -> None:
    out = external.with_name("out.onnx")
    result = onnxprune.prune(external, **SETTINGS)
    report = onnxprune.save(result, out)
    data = out.with_name("out.onnx.data")
    assert report.after.cost.bytes == out.stat().st_size + data.stat().st_size
    assert report.before.cost.bytes == sum(
        external.with_name(name).stat().st_size for name in ("ext.onnx", "ext.bin")
    )
    placed = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in onnx.load(out, load_external_data=False).graph.initializer
        if t.data_location == TensorProto.EXTERNAL
    }
    assert placed
    assert {p["location"] for p in placed.values()} == {data.name}
    kept = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    written = values(out)
    assert written.keys() == kept.keys()
    assert all(np.array_equal(written[name], kept[name]) for name in kept)
    onnx.checker.check_model(out, full_check=True)
    assert np.abs(outputs(out)).max() > 0


def test_embedded_stays_embedded(embedded: Path) -> None:
    out = embedded.with_name("out.onnx")
    report = onnxprune.save(onnxprune.prune(embedded, **SETTINGS), out)
    assert report.after.cost.bytes == out.stat().st_size
    assert not out.with_name("out.onnx.data").exists()


def test_report_knows_the_size_under_the_default_name(external: Path) -> None:
    result = onnxprune.prune(external, **SETTINGS)
    report = onnxprune.save(result, external.with_name("ext.pruned.onnx"))
    assert report == result.report


def test_same_input_same_bytes(external: Path) -> None:
    written = []
    for _ in range(2):
        onnxprune.save(onnxprune.prune(external, **SETTINGS), external.with_name("out.onnx"))
        files = (external.with_name(name) for name in ("out.onnx", "out.onnx.data"))
        written.append([f.read_bytes() for f in files])
    assert written[0] == written[1]


@pytest.mark.usefixtures("heavy")
def test_too_large_for_one_message(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything works without the weights in the message, and gives the same model."""
    out = embedded.with_name("out.onnx")
    onnxprune.save(onnxprune.prune(embedded, **SETTINGS), out)
    assert out.with_name("out.onnx.data").exists()
    monkeypatch.undo()
    result = onnxprune.prune(embedded, **SETTINGS)
    assert not result.external
    plain = embedded.with_name("plain.onnx")
    onnxprune.save(result, plain)
    one, other = values(out), values(plain)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert np.array_equal(outputs(out), outputs(plain))


@pytest.mark.usefixtures("heavy")
def test_broken_tensor_of_a_heavy_model(embedded: Path) -> None:
    proto = onnx.load(embedded)
    weight = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    weight.raw_data = weight.raw_data[:-4]
    onnx.save(proto, embedded)
    with pytest.raises(OnnxpruneError, match=f"not a valid ONNX model.*{weight.name}"):
        onnxprune.prune(embedded, **SETTINGS)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_split_and_join(dtype: int) -> None:
    model = net()
    for tensor in model.graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name)
        )
    light, held = storage.split(model)
    assert 0 < len(held) < len(model.graph.initializer)
    assert light.ByteSize() < model.ByteSize() / 4
    assert storage.join(light, held) == model


def test_data_of_an_input_is_not_overwritten(external: Path) -> None:
    trap = external.with_name("trap.onnx.data")
    external.with_name("ext.bin").rename(trap)
    proto = onnx.load(external, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = trap.name
    external.write_bytes(proto.SerializeToString())
    result, before = onnxprune.prune(external, **SETTINGS), trap.read_bytes()
    with pytest.raises(OutputError, match=r"trap\.onnx\.data: is an input"):
        onnxprune.save(result, external.with_name("trap.onnx"))
    assert trap.read_bytes() == before
    assert not external.with_name("trap.onnx").exists()


@pytest.mark.parametrize("fails", [0, 1, 2, 3])
def test_nothing_changes_where_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Two files are there already: two renames out of the way, then two into place."""
    files = [tmp_path / "m.onnx.data", tmp_path / "m.onnx"]
    for file in files:
        file.write_text(f"old {file.name}")
    real, count = os.replace, iter(range(10))

    def replace(a: Path, b: Path) -> None:
        if next(count) == fails:
            raise OSError(28, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="No space left"):
        write_files({file: [b"new"] for file in files})
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {
        f.name: f"old {f.name}" for f in files
    }
    monkeypatch.undo()
    write_files({file: [b"n", b"ew"] for file in files})
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {f.name: "new" for f in files}


def stored_as(dtype: int, *, computed: bool = False) -> onnx.ModelProto:
    """The net with weights of another type, cast before use unless they are computed with."""
    model, kind = net(), onnx.helper.tensor_dtype_to_np_dtype(dtype)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(kind)
        name = tensor.name if computed else f"{tensor.name}/stored"
        if not computed:
            cast = onnx.helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT)
            model.graph.node.insert(0, cast)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.mark.parametrize("mode", ["channels", "weights"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_weights_stay_as_they_are_stored(tmp_path: Path, dtype: int, mode: str) -> None:
    path, out = tmp_path / "half.onnx", tmp_path / "out.onnx"
    onnx.save(stored_as(dtype), path)
    report = onnxprune.save(onnxprune.prune(path, **SETTINGS, mode=mode), out)
    assert report.achieved >= 0.5
    assert report.verification.max_rel_error < 1e-6
    assert len(report.layers) == 3
    weights = [t for t in onnx.load(out).graph.initializer if t.dims]
    assert {t.data_type for t in weights} == {dtype}
    assert report.before.cost.weights == 16 * 64 + 64 * 64 + 64 * 3
    shapes = [tuple(t.dims) for t in weights]
    assert ((64, 64) in shapes) == (mode == "weights")
    assert np.abs(outputs(out)).max() > 0


def test_type_that_cannot_be_computed_with(tmp_path: Path) -> None:
    path, model = tmp_path / "bfloat.onnx", stored_as(TensorProto.BFLOAT16, computed=True)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.save(model, path)
    with pytest.raises(OnnxpruneError, match=r"onnxruntime cannot load .*: export in float32$"):
        onnxprune.prune(path, **SETTINGS)
