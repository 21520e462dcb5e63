"""External data: the values that a model keeps in files beside it, read where onnxruntime does.

A location counts from the folder that the model was named in. What it leads to, through links as
well, must lie in that folder, or in the one where the model's file really is: so a cache whose
files are links into a store works, and a model cannot read what is none of its business.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import SparseTensorProto, TensorProto

from onnxprune.errors import ModelError, shortened
from onnxprune.model.nodes import all_nodes, graphs_inside, outer_nodes
from onnxprune.model.storage import nbytes


def load_external(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Read external data into a model; return its files.

    Args:
        proto: the model, which is changed.
        path: its file.

    Raises:
        ModelError: naming the tensor and the file, if one is missing, lies elsewhere, or does
            not hold what is said of it.
    """
    files: set[Path] = set()
    for tensor in _tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        try:
            file = _located(tensor, path)
            tensor.raw_data = _content(tensor, file)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            reason = getattr(error, "strerror", None) or error
            raise _refused(tensor, path, f"cannot be read: {reason}") from None
        except _RefusalError as refusal:
            raise _refused(tensor, path, str(refusal)) from None
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
        files.add(file)
    return tuple(sorted(files))


class _RefusalError(Exception):
    """Why external data cannot be used, after the words 'its external data ...'."""


def _refused(tensor: TensorProto, path: Path, why: str) -> ModelError:
    location = shortened(_entry(tensor, "location"), 100)
    name = shortened(tensor.name, 100)
    return ModelError(f"{path}: tensor '{name}': its external data '{location}' {why}")


def _entry(tensor: TensorProto, key: str) -> str:
    return next((e.value for e in reversed(tensor.external_data) if e.key == key), "")


def _located(tensor: TensorProto, path: Path) -> Path:
    """Return the file that holds a tensor, as its model names it."""
    location = _entry(tensor, "location")
    if not location or "\0" in location:
        raise _RefusalError("names no file; export the model again")
    if Path(location).is_absolute():
        raise _RefusalError("has an absolute path; onnxruntime reads relative ones only")
    folder = path.parent
    file = folder / location
    target, linked = file.resolve(), os.path.lexists(file)
    if linked and not file.exists():
        raise _RefusalError(f"is a link to {target}, which does not exist; fetch that again")
    allowed = {folder.resolve(), path.resolve().parent}
    if not any(target.is_relative_to(one) for one in allowed):
        how = "is a link to" if linked and ".." not in location else "leads to"
        raise _RefusalError(
            f"{how} {target}, outside of the model's folder, where onnxruntime does not read it; "
            "copy it beside the model"
        )
    if not linked:
        raise _RefusalError(f"is missing in {folder}; copy it beside the model")
    if not stat.S_ISREG(file.stat().st_mode):
        raise _RefusalError("is not a regular file; give the file that was exported with the model")
    return file


def _content(tensor: TensorProto, file: Path) -> bytes:
    """Read the bytes of a tensor."""
    offset, length = (_number(tensor, key) for key in ("offset", "length"))
    shape = list(tensor.dims)
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED) or min(shape, default=0) < 0:
        raise _RefusalError("cannot hold strings or negative sizes; export the model again")
    size = nbytes(tensor)
    if length not in (0, size):
        raise _RefusalError(
            f"has length {length}, expected {size} bytes for shape {shape}; export the model again"
        )
    with file.open("rb") as handle:
        available = os.fstat(handle.fileno()).st_size
        if offset + size > available:
            raise _RefusalError(
                f"should hold it at bytes {offset} to {offset + size}, but has {available}: it is "
                "truncated, or belongs to another model; copy it again"
            )
        handle.seek(offset)
        return handle.read(size)


def _number(tensor: TensorProto, key: str) -> int:
    value = _entry(tensor, key) or "0"
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise _RefusalError(
            f"has {key} '{shortened(value, 40)}', expected a number of bytes; export it again"
        )
    return int(value)


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield all tensors of a model: of its graph and subgraphs, of attributes and functions."""
    sparse: list[SparseTensorProto] = []
    for graph in (proto.graph, *graphs_inside(outer_nodes(proto))):
        yield from graph.initializer
        sparse += graph.sparse_initializer
    for attribute in (a for node in all_nodes(proto) for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
