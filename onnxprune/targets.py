"""Targets: where results may be written, and writing them completely or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError


def check_target(target: Path, sources: Iterable[Path], *, force: bool) -> None:
    """Refuse to write over an input, over an existing file without ``force``, or into nowhere.

    Args:
        target: the file to be written.
        sources: files that are read, and folders whose files are.
        force: whether an existing file may be replaced.

    Raises:
        OutputError: saying what to do instead.
    """
    with _readable(target):
        for source in sources:
            if _same(target, source) or (target.exists() and _inside(target, source)):
                raise OutputError(f"{target}: is an input of this run; choose another output")
        if target.is_dir():
            raise OutputError(f"{target}: is a folder; give a file name")
        if not target.parent.is_dir():
            raise OutputError(f"{target}: the folder {target.parent} does not exist; create it")
        if target.exists() and not target.is_file():
            raise OutputError(f"{target}: is not a regular file; choose another output")
        if target.exists() and not force:
            raise OutputError(f"{target}: exists already; use --force to overwrite it")


def check_apart(report: Path, out: Path) -> None:
    """Refuse to write the report and the model to one file.

    Raises:
        OutputError: if they are the same.
    """
    with _readable(report):
        if _same(report, out):
            raise OutputError(f"{report}: is the model to be written too; choose another report")


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def _inside(target: Path, folder: Path) -> bool:
    return folder.is_dir() and folder.resolve() in target.resolve().parents


@contextlib.contextmanager
def _readable(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        raise OutputError(f"{str(target)[:200]}: cannot be written: {error}") from None


def write_file(path: Path, data: bytes, check: Callable[[bytes], None] = lambda _: None) -> None:
    """Write a file completely or not at all: beside its place first, then renamed over it.

    Args:
        path: where to write; an older file there survives until the new one is complete.
        data: what to write.
        check: called with what was read back from the disk, before the rename.

    Raises:
        OutputError: if it cannot be written; nothing was changed then.
    """
    try:
        with _beside(path) as (handle, temporary):
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
            check(Path(temporary).read_bytes())
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; it was left as it was"
        ) from None


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[tuple[Any, str]]:
    descriptor, temporary = tempfile.mkstemp(prefix=".onnxprune-", dir=path.parent)
    try:
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(descriptor, 0o666 & ~mask)
        with os.fdopen(descriptor, "wb") as handle:
            yield handle, temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
