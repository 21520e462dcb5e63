"""Cache: what was measured of a model on some samples, for the next budget.

An entry is an ``.npz`` of plain arrays in the folder that the system has for caches (Linux:
``$XDG_CACHE_HOME/onnxprune``, default ``~/.cache/onnxprune``). It is named after a hash of all that
its arrays depend on: the contents of the model and of the samples, the settings, and the programs
that computed them. An entry that is damaged or foreign is measured anew and replaced; where the
folder cannot be written, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from onnxprune.arrays import Arrays
from onnxprune.model.session import runtime_version
from onnxprune.version import __version__

LIMIT = 1 << 30
"""Bytes that all entries take at most; the ones unused for longest leave first."""

LARGEST = LIMIT // 4
"""Bytes beyond which an entry is not kept."""

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, TypeError,
           NotImplementedError, RuntimeError)  # fmt: skip
_KEY = "onnxprune/key"


class Cache:
    """Remembers arrays across runs.

    Args:
        folder: where entries lie; None for a cache that remembers nothing.
        subject: what all its entries depend on, as JSON values.
        sound: asked before something is remembered: whether it may be.
    """

    def __init__(
        self,
        folder: Path | None,
        subject: Mapping[str, Any] | None = None,
        sound: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder = folder
        self._subject = dict(subject or {})
        self._sound = sound

    def recall(
        self,
        name: str,
        settings: Callable[[], Mapping[str, Any]],
        measure: Callable[[], Arrays],
    ) -> Arrays:
        """Return arrays as they were measured before, else measure and remember them.

        Without a cache too, what is returned are contiguous copies: the memory layout may
        decide about the last bit of a sum.

        Args:
            name: what is measured.
            settings: returns what it depends on besides the subject, as JSON values.
            measure: measures it.
        """
        if self._folder is None:
            return _copied(measure())
        key = json.dumps({"name": name, **self._subject, **settings()}, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
        found = _read(path, key)
        if found is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
            return found
        result = _copied(measure())
        if self._sound() and sum(v.nbytes for v in result.values()) <= LARGEST:
            _write(path, key, result)
        return result


def folder() -> Path | None:
    """Return where entries lie, for this user and system; None if there is no home for them."""
    try:
        place = user_cache_path("onnxprune", appauthor=False)
    except RuntimeError:
        return None
    return place if place.is_absolute() else None  # a relative one is to be ignored


def environment() -> dict[str, Any]:
    """Return what the last bits of a result depend on besides its inputs, as JSON values."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "version": __version__,
        "source": _source(),
        "libraries": [*map(version, ("numpy", "scipy", "onnx")), runtime_version()],
        "machine": [platform.machine(), platform.node(), os.cpu_count()],
        "threads": [os.environ.get(name) for name in names],
    }


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's contents.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _source() -> str:
    """Return a hash of this package's modules: a version may be changed without a new number."""
    digest = hashlib.sha256()
    root = Path(str(files("onnxprune")))
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def _copied(arrays: Arrays) -> Arrays:
    return {name: np.array(values, order="C", copy=True) for name, values in arrays.items()}


def _read(path: Path, key: str) -> Arrays | None:
    """Return the arrays of an entry; None if it is none of this key."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        if bytes(found.pop(_KEY)) != key.encode():
            return None
    except _DAMAGE:
        return None
    return found


def _write(path: Path, key: str, arrays: Arrays) -> None:
    """Write an entry beside its place and rename it; a failure leaves no entry."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(".npz", ".partial-", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            contents: dict[str, Any] = {**arrays, _KEY: np.frombuffer(key.encode(), np.uint8)}
            np.savez(file, **contents)
        os.replace(temporary, path)
        _shrink(path.parent)
    except (OSError, ValueError):
        pass  # as if there were no cache
    finally:
        with contextlib.suppress(OSError):  # once it has its name there is nothing left
            os.unlink(temporary)


def _shrink(place: Path) -> None:
    """Remove the entries that were unused for longest until the others fit the limit."""
    entries = []
    for path in place.glob("*.npz"):
        with contextlib.suppress(OSError):
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda e: e[:2]):
        if total <= LIMIT:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
