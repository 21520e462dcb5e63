"""Arrays: samples in an .npz file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxprune.arrays import I64, Array
from onnxprune.errors import CalibrationError
from onnxprune.model.model import TensorSpec
from onnxprune.samples.dataset import _FLOATS, Batch, Dataset, Scaling, _fixed, _text

MAX_CLASSES = 1_000_000  # what is larger in ``y`` is something else than labels

CHUNK = 1 << 20  # bytes read at once while rows of an npz are passed over


@dataclass(frozen=True, eq=False)
class _Member:
    """An array in an npz; rows start at byte ``start`` and are converted to ``target``."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    target: np.dtype[Any]

    def stream(self, archive: zipfile.ZipFile, parts: Sequence[I64]) -> Iterator[Array]:
        """Read the rows ``int64 [k]`` of each part, all ascending, as ``target [k, ...]``."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        with archive.open(f"{self.name}.npy") as file:
            _exactly(file, self.start)
            position = 0
            for part in parts:
                raw = bytearray()
                for run in np.split(part, np.flatnonzero(np.diff(part) != 1) + 1):
                    for left in range((int(run[0]) - position) * row_bytes, 0, -CHUNK):
                        _exactly(file, min(left, CHUNK))
                    raw += _exactly(file, len(run) * row_bytes)
                    position = int(run[-1]) + 1
                block: Array = np.ndarray((len(part), *self.shape[1:]), self.dtype, raw)
                yield self._converted(block, part)

    def _converted(self, block: Array, rows: I64) -> Array:
        with np.errstate(over="ignore"):  # what overflows is refused as infinity
            block = block.astype(self.target, copy=False)
        if self.target in _FLOATS and not np.isfinite(block).all():
            bad = ~np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
            raise CalibrationError(
                f"array '{self.name}' has NaN or infinity (as {self.target}) in row "
                f"{rows[bad.argmax()]}; repair or remove the sample"
            )
        return block


@dataclass(frozen=True, eq=False)
class _Arrays(Dataset):
    members: dict[str, _Member]

    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:
        parts = [rows[k : k + batch_size] for k in range(0, len(rows), batch_size)]
        with zipfile.ZipFile(self.path) as archive:
            streams = [member.stream(archive, parts) for member in self.members.values()]
            for part, *arrays in zip(parts, *streams, strict=False):
                yield Batch(dict(zip(self.members, arrays, strict=True)), self.labels[part])


def open_arrays(path: Path, inputs: Sequence[TensorSpec], scaling: Scaling) -> Dataset:
    """Open an ``.npz`` with labels in ``y`` and an array for each input; only labels are read.

    Raises:
        CalibrationError: if the arrays do not fit the model.
    """
    scaling.refuse("arrays")
    with zipfile.ZipFile(path) as archive:
        found = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}
        names = _array_names(found, inputs)
        y = _member(archive, "y", None)
        members = {
            spec.name: _member(archive, name, spec)
            for spec, name in zip(inputs, names, strict=True)
        }
        counts = {m.name: sum(m.shape[:1]) for m in (y, *members.values())}
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"arrays differ in their number of samples: {counts}")
        if not counts["y"]:
            raise CalibrationError("empty; expected at least two samples")
        labels = _labels(archive, y)
    class_names = tuple(str(k) for k in range(int(labels.max()) + 1))
    return _Arrays(path, labels, class_names, members)


def _array_names(found: set[str], inputs: Sequence[TensorSpec]) -> list[str]:
    """Find the array for every input: of its name, or ``x`` for the only input."""
    names = [spec.name for spec in inputs]
    if len(names) == 1 and names[0] not in found - {"y"} and "x" in found:
        names = ["x"]
    missing = [name for name in ("y", *names) if name not in found]
    if missing or "y" in names:
        raise CalibrationError(
            f"no array {missing or names}, found {sorted(found)}; name the arrays after the "
            "model inputs ('x' will do for a single one), and the labels 'y'"
        )
    return names


def _member(archive: zipfile.ZipFile, name: str, spec: TensorSpec | None) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        try:
            old = npy.read_magic(file) == (1, 0)
            # Version 3 differs from 2 only in the names of fields, which no input has.
            read = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
            shape, fortran_order, dtype = read(file)
        except Exception:  # SyntaxError and tokenize.TokenError are among these
            raise EOFError(f"array '{name}' has a damaged header") from None
        start = file.tell()
    if dtype.hasobject:
        raise CalibrationError(f"array '{name}': pickled arrays are refused; save numbers")
    if fortran_order:
        raise CalibrationError(
            f"array '{name}' is in Fortran order, which cannot be streamed; "
            "save it with np.ascontiguousarray"
        )
    if min(shape, default=0) < 0 or info.file_size - start < dtype.itemsize * math.prod(shape):
        raise EOFError(f"array '{name}' is truncated")
    if spec is not None:
        _check_fit(name, shape, dtype.newbyteorder("="), spec)
    target = dtype.newbyteorder("=") if spec is None else spec.dtype
    return _Member(name, shape, dtype, start, target)


def _check_fit(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], spec: TensorSpec) -> None:
    if dtype != spec.dtype and not (dtype in _FLOATS and spec.dtype in _FLOATS):
        advice = "divide by 255" if dtype == np.uint8 and spec.dtype in _FLOATS else "convert"
        raise CalibrationError(
            f"array '{name}' is {dtype}, expected {spec.dtype} for input '{spec.name}'; "
            f"{advice} yourself, arrays are fed as they are"
        )
    pairs = zip(shape[1:], map(_fixed, spec.shape[1:]), strict=False)
    same_rank = len(shape) == len(spec.shape) > 0
    if not same_rank or any(want not in (None, size) for size, want in pairs):
        raise CalibrationError(
            f"array '{name}' has shape {list(shape)}, expected {_text(spec.shape)} "
            f"for input '{spec.name}'; N counts the samples"
        )


def _labels(archive: zipfile.ZipFile, y: _Member) -> I64:
    if y.dtype.kind not in "biuf" or y.shape[1:] not in ((), (1,)):
        how = "one-hot labels into class numbers with argmax"
        if y.dtype.kind in "USO":
            how = "names into class numbers, in the order of the model's classes"
        raise CalibrationError(
            f"array 'y' is {y.dtype} {list(y.shape)}, expected integers [N]; turn {how}"
        )
    values = next(y.stream(archive, [np.arange(y.shape[0])])).reshape(-1)
    wrong = (values != np.floor(values)) | (values < 0) | (values >= MAX_CLASSES)
    if wrong.any():
        signs = set(np.unique(values).tolist()) == {-1, 1}
        raise CalibrationError(
            f"array 'y' has label {values[wrong.argmax()]} in row {wrong.argmax()}, "
            f"expected class numbers from 0 to {MAX_CLASSES - 1}"
            f"{'; turn -1 and 1 into 0 and 1' if signs else ''}"
        )
    return values.astype(np.int64)


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError(f"truncated: {count - len(data)} bytes are missing")
    return data
