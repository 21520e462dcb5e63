"""Feed damaged model files to onnxprune: every one must be refused in one line, or work.

Usage: python benchmarks/fuzz_loader.py FOLDER_OF_MODELS [--files 1000] [--seed 0]

Bytes are flipped, cut out, repeated or replaced, and graphs are damaged through protobuf (names
swapped, nodes dropped or reordered, dimensions made huge or negative, types changed), and
constants are stored apart or as sparse ones with damaged places. Each file is inspected in a
worker process; a worker that dies or hangs is counted as a crash.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx

from onnxprune import InternalError, OnnxpruneError, inspect

LIMIT_S = 60


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file byte-wise."""
    raw = np.frombuffer(data, dtype=np.uint8).copy()
    at, size = int(rng.integers(len(raw))), int(rng.integers(1, 64))
    kind = rng.integers(4)
    if kind == 0:
        places = rng.integers(len(raw), size=size)
        raw[places] = rng.integers(256, size=size)
        return raw.tobytes()
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + size :]
    return data[:at] + data[at : at + size] * 3 + data[at:]


def damaged_graph(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a model in a way that still parses."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    node = graph.node[int(rng.integers(len(graph.node)))]
    kind = int(rng.integers(9))
    if kind == 0 and node.input:
        other = graph.node[int(rng.integers(len(graph.node)))]
        node.input[int(rng.integers(len(node.input)))] = other.output[0]
    elif kind == 1:
        graph.node.remove(node)
    elif kind == 2 and graph.initializer:
        graph.initializer.remove(graph.initializer[int(rng.integers(len(graph.initializer)))])
    elif kind == 3 and graph.initializer:
        tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
        if tensor.dims:
            tensor.dims[0] = int(rng.choice([0, -1, 2**31, 2**62, 7]))
    elif kind == 4:
        node.op_type = str(rng.choice(["Relu", "Conv", "Reshape", "Nothing", "Concat", "LSTM"]))
    elif kind == 5:
        node.domain = "unknown.domain"
    elif kind == 6 and node.attribute:
        attribute = node.attribute[int(rng.integers(len(node.attribute)))]
        attribute.i = int(rng.choice([0, -1, 2**40]))
        attribute.ints[:] = [int(v) for v in rng.integers(-3, 9, size=len(attribute.ints))]
    elif kind == 7:
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[int(rng.integers(len(dims)))].dim_value = int(rng.choice([0, -1, 1, 2**40]))
    else:
        nodes = list(graph.node)
        rng.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)
    return model.SerializeToString()


PLACES = ("", ".", "..", "/", "x" * 300, "x" * 5000, "a\0b", "../m.onnx", "{}", "data", "loop")
NUMBERS = ("", "0", "-1", "7", "1e3", "٣", "0x10", " 4", "9" * 18, "9" * 30, "nan", "\0")


def damaged_constants(data: bytes, rng: np.random.Generator) -> bytes:
    """Store a constant apart or as a sparse one, and damage what is said of it."""
    model = onnx.load_model_from_string(data)
    tensors = [t for t in model.graph.initializer if t.dims]
    if not tensors:
        return data
    tensor = tensors[int(rng.integers(len(tensors)))]
    if rng.random() < 0.5:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, values in (("location", PLACES), ("offset", NUMBERS), ("length", NUMBERS)):
            for _ in range(int(rng.integers(3))):
                tensor.external_data.add(key=key, value=str(rng.choice(values)))
        return model.SerializeToString()
    values = onnx.numpy_helper.to_array(tensor)
    places = np.flatnonzero(values) if rng.random() < 0.5 else np.argwhere(values)
    sparse = model.graph.sparse_initializer.add(dims=tensor.dims)
    flat = values[values != 0][: len(places) - int(rng.integers(2))]
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(flat, tensor.name))
    places = places + int(rng.choice([0, 0, -1, 1, 2**40]))
    kind = str(rng.choice(["int64", "int64", "int32", "float32"]))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(places.astype(kind)))
    sparse.dims[0] = int(rng.choice([sparse.dims[0], sparse.dims[0], 0, -1, 2**62]))
    model.graph.initializer.remove(tensor)
    return model.SerializeToString()


def outcome(path: str) -> str:
    """Inspect one file and say what came of it."""
    warnings.simplefilter("ignore")
    try:
        inspect(path, threads=1)
    except OnnxpruneError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    except InternalError as error:
        return f"INTERNAL {error}"
    except Exception as error:
        return f"TRACEBACK {type(error).__name__}: {str(error)[:150]}"
    return "worked"


def in_worker(path: Path) -> str:
    """Run :func:`outcome` in a process of its own, so that nothing it does can hurt us."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(outcome(str(path))))
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(LIMIT_S) else f"HANG after {LIMIT_S} s"
    except EOFError:
        result = "DIED"
    process.kill()
    process.join()
    return f"{result} (exit {process.exitcode})" if result == "DIED" else result


def main() -> None:
    """Fuzz, print a tally and every outcome that is a bug."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    rng = np.random.default_rng(a.seed)
    models = [path.read_bytes() for path in sorted(a.folder.glob("*.onnx"))]
    tally: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for k in range(a.files):
            data = models[k % len(models)]
            damage = (damaged_bytes, damaged_graph, damaged_graph, damaged_constants)[k % 4]
            path = Path(folder, f"{k}.onnx")
            path.write_bytes(damage(data, rng))
            result = in_worker(path)
            path.unlink()
            tally[result.split(" ")[0]] += 1
            if result not in ("refused", "worked"):
                print(f"file {k} ({damage.__name__}): {result}", flush=True)
    print(f"{a.files} files, seed {a.seed}: {dict(tally)}")
    sys.exit(any(k not in ("refused", "worked") for k in tally))


if __name__ == "__main__":
    main()
