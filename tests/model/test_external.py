"""External data is read where onnxruntime reads it, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command import done, report_of, run, tree
from onnx import TensorProto, numpy_helper
from strategies import BATCH, Net

from onnxprune import OnnxpruneError
from onnxprune.model import model as graph
from onnxprune.model.external import load_external
from onnxprune.verbs.bench import bench

DATA = "m.onnx_data"


def store(folder: Path, location: str = DATA) -> Path:
    """Write a model and its data; the model says that they are at ``location``."""
    n = Net(17)
    x = n.op("Relu", n.gemm(n.input(BATCH, 16), 16, 64))
    proto = n.model(n.gemm(n.op("Relu", n.gemm(x, 64, 64)), 64, 3), rank=2)
    path = folder / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location=DATA, size_threshold=0)
    return relocated(path, location=location)


def relocated(path: Path, **entries: str) -> Path:
    """Change what a model says of its external data."""
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for key, value in entries.items():
            kept = [e for e in tensor.external_data if e.key != key]
            said = [*kept, onnx.StringStringEntryProto(key=key, value=value)]
            del tensor.external_data[:]
            tensor.external_data.extend(said)
    path.write_bytes(proto.SerializeToString())
    return path


def linked(folder: Path, model: str, data: str) -> Path:
    """Store a model in ``folder`` and link to it from ``snap``, each part as asked for.

    A part is a file in ``snap``, or a link to one in the folder that is named; data may be only
    in that folder, after a dash.
    """
    store(folder)
    (folder / "snap").mkdir()
    for name, place in (("m.onnx", model), (DATA, data)):
        only = place.startswith("-")
        target = folder / place.removeprefix("-")
        target.mkdir(parents=True, exist_ok=True)
        real = target / (name if place == "snap" or only else f"{name}-blob")
        (folder / name).rename(real)
        if place != "snap" and not only:
            (folder / "snap" / name).symlink_to(os.path.relpath(real, folder / "snap"))
    return folder / "snap" / "m.onnx"


def dangling(folder: Path) -> Path:
    path = store(folder)
    (folder / DATA).unlink()
    (folder / DATA).symlink_to("blobs/gone")
    return path


def looped(folder: Path) -> Path:
    path = store(folder)
    (folder / DATA).unlink()
    (folder / DATA).symlink_to(DATA)
    return path


def hard_linked(folder: Path) -> Path:
    path = store(folder)
    os.link(folder / DATA, folder / "other")
    return path


def below(folder: Path) -> Path:
    path = store(folder, f"w/{DATA}")
    (folder / "w").mkdir()
    (folder / DATA).rename(folder / "w" / DATA)
    return path


def missing(folder: Path) -> Path:
    path = store(folder)
    (folder / DATA).unlink()
    return path


def truncated(folder: Path) -> Path:
    path = store(folder)
    os.truncate(folder / DATA, 100)
    return path


def away(folder: Path) -> Path:
    (folder / "sub").mkdir()
    path = store(folder, f"../{DATA}")
    return path.rename(folder / "sub" / "m.onnx")


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "plain": (store, ""),
    "cache of links": (lambda f: linked(f, "blobs", "blobs"), ""),
    "real data beside a link": (lambda f: linked(f, "blobs", "snap"), ""),
    "data below the model's real folder": (lambda f: linked(f, "blobs", "blobs/x"), ""),
    "hard link": (hard_linked, ""),
    "folder below": (below, ""),
    "dot": (lambda f: store(f, f"./{DATA}"), ""),
    "up and down": (lambda f: (f / "w").mkdir() or store(f, f"w/../{DATA}"), ""),
    "data only beside the real model": (lambda f: linked(f, "blobs", "-blobs"), "is missing in"),
    "real model, data linked away": (
        lambda f: linked(f, "snap", "blobs"),
        "is a link to .*blob, outside",
    ),
    "links to two stores": (lambda f: linked(f, "blobs", "other"), "is a link to .*, outside"),
    "missing": (missing, f"'{DATA}' is missing in .*copy it beside the model"),
    "dangling": (dangling, "is a link to .*gone, which does not exist"),
    "loop": (looped, "cannot be read: .*[Ll]oop|which does not exist"),
    "away": (away, "leads to .*, outside of the model's folder"),
    "absolute": (lambda f: store(f, str(f / DATA)), "has an absolute path"),
    "empty": (lambda f: store(f, ""), "names no file"),
    "folder": (lambda f: store(f, "."), "is not a regular file"),
    "itself": (lambda f: store(f, "m.onnx"), "truncated, or belongs to another model"),
    "long": (lambda f: store(f, "x" * 5000), r"x\.\.\.' is missing in"),
    "truncated": (truncated, "has 100: it is truncated"),
    "letters": (lambda f: relocated(store(f), offset="seven"), "offset 'seven', expected a number"),
    "negative": (lambda f: relocated(store(f), offset="-4"), "offset '-4', expected a number"),
    "far": (lambda f: relocated(store(f), offset="9" * 17), "should hold it at bytes 9999"),
    "huge": (lambda f: relocated(store(f), offset="9" * 50), "offset '999.*expected a number"),
    "length": (lambda f: relocated(store(f), length="5"), "has length 5, expected 4096 bytes"),
}


def runs(path: Path) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), options)
    except Exception:  # of many types
        return False
    return True


@pytest.mark.parametrize(("build", "reason"), PLACES.values(), ids=PLACES)
def test_data_is_read_where_onnxruntime_reads_it(
    tmp_path: Path, build: Callable[[Path], Path], reason: str
) -> None:
    path = build(tmp_path)
    assert runs(path) == (not reason)
    if not reason:
        assert len(graph.load(path).files) == 2
        return
    with pytest.raises(OnnxpruneError, match=f"m.onnx: tensor '.*': its external data .*{reason}"):
        graph.load(path)


def test_every_verb_on_a_cache_of_links(tmp_path: Path) -> None:
    path = linked(tmp_path, "blobs", "blobs")
    before = tree(tmp_path / "blobs")
    out = tmp_path / "out.onnx"
    report = report_of("prune", path, "--random-inputs", "--sparsity", 0.5, "-o", out)
    assert report["sparsity"]["achieved"] >= 0.5
    assert runs(out)
    done("prune", path, "--lossless", "-o", tmp_path / "same.onnx")
    assert runs(tmp_path / "same.onnx")
    done("prune", path, "--random-inputs", "--sparsity", 0.5)
    assert runs(path.with_name("m.pruned.onnx"))
    assert not path.with_name("m.pruned.onnx").is_symlink()
    result = run("prune", path, "--lossless", "-o", path.with_name(DATA), "--force")
    assert "is an input" in result.stderr
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 16)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(30) % 3)
    done("evaluate", path, "--calib", tmp_path / "d.npz")
    found = bench([path], seconds=0.1, rounds=1, int8=False, threads=1)
    assert found.entries[0].footprint is not None
    assert tree(tmp_path / "blobs") == before


def test_data_of_all_kinds_of_tensors(tmp_path: Path) -> None:
    """In attributes, of four bits, and without a length."""
    values = np.arange(5, dtype=np.int8) - 2
    four = numpy_helper.from_array(values.astype(onnx.helper.tensor_dtype_to_np_dtype(22)), "four")
    half = numpy_helper.from_array(np.ones(3, np.float16), "half")
    (tmp_path / "data").write_bytes(b"...." + four.raw_data + half.raw_data)
    for tensor, offset in ((four, 4), (half, 4 + len(four.raw_data))):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data")
        tensor.external_data.add(key="offset", value=str(offset))
    node = onnx.helper.make_node("Constant", [], ["h"], value=half)
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [four]))
    assert load_external(proto, tmp_path / "m.onnx") == (tmp_path / "data",)
    assert numpy_helper.to_array(proto.graph.initializer[0]).astype(int).tolist() == values.tolist()
    assert numpy_helper.to_array(proto.graph.node[0].attribute[0].t).tolist() == [1, 1, 1]
