"""Made-up inputs fit the model."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model.model import normalise
from onnxprune.model.session import Session
from onnxprune.samples.synthetic import has_free_sizes, synthetic_feeds


def lookup_model():
    table = numpy_helper.from_array(np.ones((5, 4), np.float32), "table")
    nodes = [
        helper.make_node("Cast", ["ids"], ["long"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "long"], ["rows"]),
        helper.make_node("Where", ["mask", "rows", "image"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", "t"]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", "t", 1]),
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", "t", 4]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [table])
    opset = [helper.make_opsetid("", 17)]
    return normalise(helper.make_model(graph, opset_imports=opset, ir_version=8))


def test_indices_stay_in_their_table_and_masks_are_set():
    model = lookup_model()
    feeds = synthetic_feeds(model, batch=3, size=50)
    assert {name: v.shape for name, v in feeds.items()} == {
        "ids": (3, 50),
        "mask": (3, 50, 1),
        "image": (3, 50, 4),
    }
    assert set(np.unique(feeds["ids"])) == set(range(5))
    assert feeds["mask"].all()
    assert {v.dtype for v in feeds.values()} == {np.dtype(t) for t in ("i4", "?", "f4")}
    assert np.isfinite(Session(model.proto, threads=1).run(feeds)[0]).all()
    assert has_free_sizes(model)


def test_draws_are_seeded():
    first, again, other = (synthetic_feeds(lookup_model(), seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])
