"""Targets: where results may be written, and writing them completely or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        raise OutputError(f"{target}: cannot be written: {error}") from None


def default_target(model: Path) -> Path:
    """Return where the pruned form of a model goes if nothing else is said."""
    return model.parent / f"{model.stem}.pruned.onnx"


def plan_target(model: Path) -> Path:
    """Return where the plan for a model goes if nothing else is said."""
    return model.parent / f"{model.stem}.plan.json"


def data_target(model: Path) -> Path:
    """Return where the external data of a model to be written goes."""
    return model.parent / f"{model.name}.data"


def write_files(
    contents: Mapping[Path, Iterable[bytes]],
    check: Callable[[Mapping[Path, Path]], None] = lambda _: None,
) -> None:
    """Write files completely or not at all: all beside their places first, then renamed.

    Args:
        contents: what to write where, a file before those that point to it. Older files
            survive until all new ones are complete.
        check: called with where each file was written to, before any is renamed.

    Raises:
        OutputError: if one cannot be written; nothing was changed then.
    """
    path = next(iter(contents))
    written: dict[Path, Path] = {}
    try:
        with contextlib.ExitStack() as stack:
            for path, chunks in contents.items():
                handle, temporary = stack.enter_context(_beside(path))
                handle.writelines(chunks)
                handle.flush()
                os.fsync(handle.fileno())
                written[path] = Path(temporary)
            check(written)
            _move_in(written)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; it was left as it was"
        ) from None


def _move_in(written: Mapping[Path, Path]) -> None:
    """Rename files to their places; of several, no old one may meet a new one."""
    placed: list[Path] = []
    aside: dict[Path, Path] = {}
    try:
        for path in reversed(list(written)):
            if len(written) > 1 and path.exists():
                spare = written[path].with_suffix(".old")
                os.replace(path, spare)
                aside[path] = spare
        for path, temporary in written.items():
            os.replace(temporary, path)
            placed.append(path)
    except BaseException:
        for path in placed:
            path.unlink()
        for path, spare in reversed(aside.items()):
            os.replace(spare, path)
        raise
    for spare in aside.values():
        spare.unlink()


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
