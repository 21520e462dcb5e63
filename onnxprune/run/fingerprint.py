"""Fingerprints: hashes of samples by their contents, to tell whether something is known of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from onnxprune.run.cache import file_hash
from onnxprune.samples.holdout import Subset


class Fingerprints:
    """Hashes subsets of the samples of one run; each file is read once.

    Contents are hashed, not names and times: reading costs little beside decoding, and a copy
    or a checkout with other contents is never taken for what it is not.
    """

    def __init__(self) -> None:
        self._of_path: dict[Path, str] = {}

    def of(self, subset: Subset) -> str:
        """Return the hash of a subset: its files, its rows, and how they are read."""
        path = subset.dataset.path
        if path not in self._of_path:
            self._of_path[path] = _contents(path)
        digest = hashlib.sha256(f"{self._of_path[path]} {subset.batch_size}".encode())
        for values in (subset.rows, subset.label_of):
            digest.update(
                b"-" if values is None else f"{values.dtype} ".encode() + values.tobytes()
            )
        return digest.hexdigest()


def files_hash(files: Iterable[Path]) -> str:
    """Return a hash of the contents of several files, in order."""
    return hashlib.sha256(" ".join(map(file_hash, files)).encode()).hexdigest()


def _contents(path: Path) -> str:
    """Return a hash of a file, or of all files below a folder with their names."""
    if not path.is_dir():
        return file_hash(path)
    digest = hashlib.sha256()
    for folder, below, names in os.walk(path, followlinks=True):
        below.sort()
        for name in sorted(names):
            file = Path(folder, name)
            try:
                found = file_hash(file)
            except OSError:
                found = "unreadable"
            digest.update(f"{str(file.relative_to(path))!r} {found}\n".encode())
    return digest.hexdigest()
