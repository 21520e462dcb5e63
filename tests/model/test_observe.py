"""What is observed once is not taken for what always holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper
from strategies import Net

from onnxprune import load_plan, prune, save_plan
from onnxprune.cli import commands as cli
from onnxprune.errors import InternalError, ModelError
from onnxprune.model import model as graph
from onnxprune.model.folding import computed_constants, fold
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import compare, verify
from onnxprune.samples.synthetic import synthetic_feeds
from onnxprune.structure.trace import trace

SETTINGS: dict[str, Any] = {"sparsity": 0.5, "mode": "channels", "random_inputs": True}


def found_rows(n: Net, x: str, counter: str) -> str:
    """Rows of ``x`` (``[tokens, channels]``) that are found in the data."""
    above = n.op("Greater", n.op("ReduceMax", x, axes=[1], keepdims=0), n.const(0.0))
    if counter == "NonZero":
        places = n.op("Squeeze", n.op("NonZero", above), n.const([0]))
        return n.op("Gather", x, places, axis=0)
    if counter == "Unique":
        rounded = n.op("Round", n.op("ReduceMax", x, axes=[1], keepdims=0))
        first = n.ops("Unique", 2, rounded)[1]
        return n.op("Gather", x, first, axis=0)
    return n.op("Compress", x, above, axis=0)


def counting_net(counter: str, most: int = 100) -> ModelProto:
    """Static inputs; rows are found in the data and reshaped by sizes computed from them."""
    n = Net()
    rows = found_rows(n, n.input(24, 6), counter)
    rows = n.op("Slice", rows, n.const([0]), n.const([most]), n.const([0]))
    wide = n.op("Relu", n.gemm(rows, 6, 16))
    size = n.op("Shape", wide)
    count = n.op("Gather", size, n.const([0]))
    shape = n.op("Concat", count, n.const([4]), n.const([4]), axis=0)
    folded = n.op("Reshape", wide, shape)
    back = n.op("Reshape", n.op("Transpose", folded, perm=[0, 2, 1]), size)
    return n.model(n.gemm(back, 16, 3), rank=2)


@pytest.mark.parametrize("most", [100, 4])
@pytest.mark.parametrize("counter", ["NonZero", "Unique", "Compress"])
def test_a_size_that_depends_on_the_data_is_not_folded(
    tmp_path: Path, counter: str, most: int
) -> None:
    proto = counting_net(counter, most)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    small = prune(path, **SETTINGS).model
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 1.0):  # few rows are found, half of them, all
        x = np.where(rng.random((24, 1)) < share, 1, -1) * rng.random((24, 6))
        feeds = {"x0": x.astype(np.float32)}
        (expected,), (got,) = (oracle.run(p, feeds) for p in (proto, small))
        assert expected.shape == got.shape


def test_counts_that_saturate_are_still_dynamic() -> None:
    model = graph.normalise(counting_net("NonZero", 4))
    x = np.ones((24, 6), np.float32)
    shapes = observe(model, {"x0": x}, runner=Runner(1))
    relu = next(n for n in model.proto.graph.node if n.op_type == "Relu").output[0]
    assert shapes.first[relu] == (4, 16)
    assert shapes.is_dynamic(relu, 0)
    assert not shapes.is_dynamic(relu, 1)


def loop_net() -> ModelProto:
    """Adds a row as often as the data says, then computes with the number of rows."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["one"], ["row"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, [8]),
        ],
    )
    n = Net()
    x = n.input(1, 8)
    one = n.op("Squeeze", n.gemm(x, 8, 8), n.const([0]))
    n.nodes.append(helper.make_node("Identity", [one], ["one"]))
    trips = n.op("Cast", n.op("Abs", n.op("ReduceSum", x, keepdims=0)), to=TensorProto.INT64)
    yes = n.const(True)
    rows = n.op("Loop", trips, yes, body=body)
    hidden = n.op("Relu", n.gemm(rows, 8, 16))
    shape = n.op("Shape", hidden)
    size = n.op("Mul", n.op("Gather", shape, n.const(0)), n.op("Gather", shape, n.const(1)))
    flat = n.op("Reshape", hidden, n.op("Unsqueeze", size, n.const([0])))
    again = n.op("Reshape", flat, shape)
    return n.model(n.gemm(again, 16, 3), rank=2)


def test_nothing_behind_a_loop_is_folded_however_often_it_ran(tmp_path: Path) -> None:
    proto = loop_net()
    known = computed_constants(graph.normalise(proto))
    loop = next(n for n in proto.graph.node if n.op_type == "Loop").output[0]
    shape = [n.output[0] for n in proto.graph.node if n.op_type == "Shape"][-1]
    assert loop in known.loosely
    assert shape not in known.sources
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    try:
        small = prune(path, **SETTINGS | {"sparsity": 0.2}).model
    except ModelError:
        return  # nothing could be proven of a loop that did not run
    for trips in (1.0, 3.0, 7.0):
        feeds = {"x0": np.full((1, 8), (trips + 0.5) / 8, np.float32)}
        (expected,), (got,) = (oracle.run(p, feeds) for p in (proto, small))
        assert expected.shape == got.shape == (trips, 3)


def test_a_branch_that_the_sizes_decide_leaves_sizes_known() -> None:
    """TorchScript writes ``squeeze`` so; what follows is still folded."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["h"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, op in (("then", "Relu"), ("else", "Identity"))
    }
    n = Net()
    n.nodes.append(helper.make_node("Neg", [n.input("n", 4)], ["h"]))
    size = n.op("Gather", n.op("Shape", "h"), n.const(1))
    chosen = n.op("If", n.op("Equal", size, n.const(1)), **branches)
    width = n.op("Gather", n.op("Shape", chosen), n.const(1))
    n.op("Mul", chosen, n.op("Cast", width, to=TensorProto.FLOAT))
    model = graph.normalise(n.model(n.nodes[-1].output[0], rank=2))
    assert width in computed_constants(model).sources


# -- dynamic axes --------------------------------------------------------------------------


def positions_net(longest: int = 16) -> ModelProto:
    """Tokens of any length up to that of a table of positions, with computed shapes."""
    n = Net()
    x = n.input("n", "length", 6)
    length = n.op("Gather", n.op("Shape", x), n.const([1]))
    places = n.op("Slice", n.weight(longest, 6), n.const([0]), length, n.const([0]))
    h = n.dense(n.op("Add", x, places), 6, 16)
    batch = n.op("Gather", n.op("Shape", x), n.const([0]))
    heads = n.op("Reshape", h, n.op("Concat", batch, length, n.const([4, 4]), axis=0))
    heads = n.op("Transpose", n.op("Relu", heads), perm=[0, 2, 1, 3])
    back = n.op("Transpose", heads, perm=[0, 2, 1, 3])
    flat = n.op("Reshape", back, n.op("Concat", batch, length, n.const([16]), axis=0))
    return n.model(n.dense(flat, 16, 3), rank=3)


def tokens(batch: int, length: int, seed: int = 0) -> dict[str, Any]:
    return {"x0": np.random.default_rng(seed).normal(size=(batch, length, 6)).astype(np.float32)}


def test_where_a_length_cannot_grow_shorter_ones_are_tried() -> None:
    proto = positions_net()
    model = graph.normalise(proto)
    shapes = observe(model, tokens(2, 16), runner=Runner(1))
    assert not shapes.stuck
    assert shapes.second["x0"][1] < 16
    folded = fold(model, shapes)
    structure = trace(folded, shapes)
    kept = oracle.random_removal(structure, np.random.default_rng(1), 0.4)
    small = rewrite(Cut(folded, structure, shapes, plan_from_units("", structure, kept))).proto
    assert not kept.all()
    for batch, length in ((1, 16), (3, 5), (2, 1)):
        feeds = tokens(batch, length)
        assert oracle.run(small, feeds)[0].shape == oracle.run(proto, feeds)[0].shape


def test_an_axis_with_one_size_is_said_and_nothing_is_folded(tmp_path: Path) -> None:
    n = Net()
    mixed = n.op("MatMul", n.input("n", 6, "length"), n.weight(5, 4))
    h = n.op("Relu", n.dense(n.op("Transpose", mixed, perm=[0, 2, 1]), 6, 8))
    size = n.op("Shape", h)
    y = n.op("Mul", h, n.op("Cast", n.op("Gather", size, n.const(1)), to=TensorProto.FLOAT))
    proto = n.model(n.dense(y, 8, 3), rank=3)
    model = graph.normalise(proto)
    x = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    shapes = observe(model, {"x0": x}, runner=Runner(1))
    assert len(shapes.stuck) == 1
    assert "'length'" in shapes.stuck[0]
    assert not shapes.constants
    assert len(fold(model, shapes).proto.graph.node) == len(proto.graph.node)
    onnx.save(proto, tmp_path / "m.onnx")
    result = prune(tmp_path / "m.onnx", dims={"length": 5}, **SETTINGS)
    assert any("'length'" in text and "one size" in text for text in result.report.warnings)


def test_a_batch_that_is_baked_in_is_refused() -> None:
    n = Net()
    y = n.op("Reshape", n.dense(n.input("n", 4), 4, 6), n.const([2, 6]))
    model = graph.normalise(n.model(n.dense(y, 6, 3), rank=2))
    with pytest.raises(ModelError, match="one batch size only"):
        observe(model, {"x0": np.ones((2, 4), np.float32)}, runner=Runner(1))


def test_axes_of_one_name_change_together() -> None:
    n = Net()
    a, b = n.input("length", "n", 4), n.input("n", "length", 4)
    y = n.op("Add", n.op("Transpose", a, perm=[1, 0, 2]), b)
    model = graph.normalise(n.model(n.dense(y, 4, 3), rank=3))
    feeds = synthetic_feeds(model, batch=3, size=7)
    assert {k: v.shape for k, v in feeds.items()} == {"x0": (3, 3, 4), "x1": (3, 3, 4)}
    feeds = synthetic_feeds(model, batch=3, dims={"length": 7, "n": 2})
    assert {k: v.shape for k, v in feeds.items()} == {"x0": (7, 2, 4), "x1": (2, 7, 4)}
    shapes = observe(model, feeds, runner=Runner(1))
    first, second = shapes.second["x0"], shapes.second["x1"]
    assert (first[0], first[1]) == (second[1], second[0])
    assert {first[0], first[1]}.isdisjoint({7, 2}) or first[0] != 7


def test_a_negative_size_is_dynamic(tmp_path: Path) -> None:
    n = Net()
    proto = n.model(n.gemm(n.op("Relu", n.gemm(n.input("n", 4), 4, 8)), 8, 3), rank=2)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert graph.normalise(proto).inputs[0].shape == ("", 4)
    onnx.save(proto, tmp_path / "m.onnx")
    small = prune(tmp_path / "m.onnx", **SETTINGS).model
    for batch in (1, 5):
        assert oracle.run(small, {"x0": np.ones((batch, 4), np.float32)})[0].shape == (batch, 3)


@pytest.mark.parametrize("rest", [-1, 0])
def test_sizes_that_did_not_change_stay_as_they_were_written(rest: int) -> None:
    """``[12, -1, 16]`` with the batch times the heads in between: no batch is baked in."""
    n = Net()
    x = n.input("n", 12, 6)
    h = n.dense(x, 6, 64)
    if rest == -1:
        h = n.op("Reshape", n.op("Transpose", h, perm=[1, 0, 2]), n.const([12, -1, 16]))
        back = n.op("Reshape", n.op("Relu", h), n.const([12, -1, 64]))
        y = n.op("Transpose", back, perm=[1, 0, 2])
    else:
        h = n.op("Relu", n.op("Reshape", h, n.const([0, 0, 4, 16])))
        y = n.op("Reshape", h, n.const([0, 0, 64]))
    proto = n.model(n.dense(y, 64, 3), rank=3)
    t = oracle.traced(proto)
    kept = oracle.random_removal(t.structure, np.random.default_rng(0), 0.5)
    small = oracle.pruned(t, kept)
    assert not kept.all()
    written = {i.name: numpy_helper.to_array(i) for i in small.graph.initializer}
    shapes = [written[k.input[1]] for k in small.graph.node if k.op_type == "Reshape"]
    assert shapes[0][1] == rest
    assert oracle.mask(t, kept)


# -- proofs --------------------------------------------------------------------------------


def rarely(n: Net, x: str) -> str:
    """Rows of ``x`` that are above a bound that data does not reach."""
    above = n.op("Greater", n.op("ReduceMax", x, axes=[1], keepdims=0), n.const(1e6))
    return n.op("Compress", x, above, axis=0)


def test_an_empty_output_proves_nothing() -> None:
    n = Net()
    rows = rarely(n, n.op("Relu", n.gemm(n.input(24, 6), 6, 8)))
    reference = graph.normalise(n.model(n.gemm(rows, 8, 3), rank=2))
    wrong = ModelProto()
    wrong.CopyFrom(reference.proto)
    behind = next(t for t in wrong.graph.initializer if tuple(t.dims) == (8, 3))
    behind.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(behind), behind.name))
    feeds = observe(reference, synthetic_feeds(reference), runner=Runner(1)).feeds
    assert not oracle.run(reference.proto, feeds[0])[0].size
    assert verify(reference, reference, feeds, "model", runner=Runner(1)).max_rel_error == 0
    with pytest.raises(InternalError):
        verify(reference, graph.Model(wrong), feeds, "model", runner=Runner(1))


def test_an_output_that_stays_empty_is_refused() -> None:
    n = Net()
    x = n.input(4, 6)
    none = n.op("Cast", n.op("ReduceMax", n.op("Relu", n.op("Neg", n.op("Abs", x))), keepdims=0),
                to=TensorProto.INT64)  # fmt: skip
    cut = n.op("Slice", x, n.const([0]), n.op("Unsqueeze", none, n.const([0])), n.const([0]))
    model = graph.normalise(n.model(n.gemm(cut, 6, 3), rank=2))
    feeds = observe(model, synthetic_feeds(model), runner=Runner(1)).feeds
    with pytest.raises(ModelError, match="is empty on all 2 sets of inputs"):
        compare(model, model, feeds, runner=Runner(1))


def test_every_proof_sees_other_data_at_other_sizes() -> None:
    model = graph.normalise(positions_net())
    feeds = tokens(4, 8)
    shapes = observe(model, feeds, runner=Runner(1))
    first, second = shapes.feeds
    assert first["x0"] is feeds["x0"]
    assert all(a != b for a, b in zip(first["x0"].shape[:2], second["x0"].shape[:2], strict=True))
    assert np.isin(second["x0"], first["x0"]).all()
    assert compare(model, model, shapes.feeds, runner=Runner(1)).samples == 4 + len(second["x0"])


def test_a_model_that_draws_at_random_is_said_to() -> None:
    n = Net()
    h = n.op("Relu", n.gemm(n.input("n", 6), 6, 8))
    noise = n.op("RandomNormalLike", h, name="noise")
    proto = n.model(n.gemm(n.op("Add", h, noise), 8, 3), rank=2)
    other = ModelProto()
    other.CopyFrom(proto)
    other.graph.node[-1].input[0] = h
    model = graph.normalise(proto)
    feeds = observe(model, synthetic_feeds(model), runner=Runner(1)).feeds
    with pytest.raises(ModelError, match="node 'noise' RandomNormalLike draws at random"):
        verify(model, graph.normalise(other), feeds, "model")


# -- --dim ---------------------------------------------------------------------------------


def fixed_length_net() -> ModelProto:
    n = Net()
    x = n.input("n", 1, "samples")
    y = n.op("Reshape", x, n.const([0, -1, 9]))
    return n.model(n.dense(n.op("Relu", n.dense(y, 9, 8)), 8, 3), rank=3)


def test_sizes_of_dynamic_axes_can_be_given(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(fixed_length_net(), model)

    def run(*args: str) -> Any:
        return CliRunner().invoke(cli.main, [str(a) for a in args], catch_exceptions=False)

    failed = run("inspect", model)
    assert failed.exit_code == 1
    assert "--dim NAME=SIZE" in failed.output
    assert run("inspect", model, "--dim", "samples=576").exit_code == 0
    assert run("inspect", model, "--dim", "x0:2=576").exit_code == 0
    unknown = run("inspect", model, "--dim", "length=576")
    assert unknown.exit_code == 1
    assert "expected one of n, samples, x0:0, x0:2" in unknown.output
    for bad in ("samples", "samples=", "samples=0", "samples=-3", "=3", "samples=1.5"):
        assert run("inspect", model, "--dim", bad).exit_code == 2
    plan = tmp_path / "p.json"
    made = run("plan", model, "--random-inputs", "--macs", "0.5", "--mode", "channels",
               "--dim", "samples=576", "-o", plan)  # fmt: skip
    assert made.exit_code == 0, made.output
    loaded = load_plan(plan)
    assert loaded.request is not None
    assert loaded.request.dims == {"samples": 576}
    save_plan(loaded, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == plan.read_bytes()
    out = tmp_path / "o.onnx"
    assert run("apply", model, plan, "-o", out).exit_code == 0
    for length in (9, 90):
        assert oracle.run(onnx.load(out), {"x0": np.ones((2, 1, length), np.float32)})[0].size


def test_what_is_folded_takes_a_name_but_not_what_was_said_of_it() -> None:
    n = Net()
    flags = n.const([0, 1, 1, 0])
    x = n.conv(n.input("N", 2, "W"), 2, 4, dims=1)
    picked = n.op("Unsqueeze", n.op("Cast", flags, to=TensorProto.BOOL), n.const([1]))
    proto = n.model(n.conv(n.op("Where", picked, x, n.const(0.0)), 4, 3, dims=1))
    proto.graph.value_info.append(helper.make_tensor_value_info(flags, TensorProto.INT64, [4]))
    t = oracle.traced(proto)
    assert flags in {i.name for i in t.model.proto.graph.initializer}
    onnx.shape_inference.infer_shapes(t.model.proto)
