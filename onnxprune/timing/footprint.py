"""Footprint: bytes on disk, bytes zipped, and the memory that a model takes to run.

Run as a program, ``python -m onnxprune.timing.footprint``, it is the fresh process in which one
model is loaded and run, so that the memory is that model's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds

_STATUS, _RESET = "/proc/self/status", "/proc/self/clear_refs"
_CHUNK = 2**20


@dataclass(frozen=True)
class Footprint:
    """How many bytes a model takes.

    Attributes:
        file_bytes: its file, with external data.
        zipped_bytes: the same, deflated as in a zip archive.
        peak_memory_bytes: what loading the file and running it adds, at most, to the resident
            memory of a fresh process that holds onnxruntime and the inputs; None where the
            system (all but Linux) does not tell.
    """

    file_bytes: int
    zipped_bytes: int
    peak_memory_bytes: int | None


def measure_footprint(files: Sequence[Path], feeds: Feeds, *, runner: Runner = PLAIN) -> Footprint:
    """Measure how many bytes a model takes on disk, zipped and in memory.

    Args:
        files: the file of the model, and those of its external data.
        feeds: inputs to run it on, in that other process.
        runner: whose threads and provider run it.

    Raises:
        ModelError: if the model cannot be loaded or run.
    """
    return Footprint(
        sum(file.stat().st_size for file in files),
        sum(map(_deflated, files)),
        _peak_memory(files[0], feeds, runner),
    )


def _deflated(file: Path) -> int:
    packer, size = zlib.compressobj(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


def _peak_memory(model: Path, feeds: Feeds, runner: Runner) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, *feeds.values())
        process = subprocess.run(
            [sys.executable, "-m", "onnxprune.timing.footprint"],
            input=json.dumps(
                [str(model.absolute()), str(inputs), list(feeds), runner.threads, runner.provider]
            ),
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        answer = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = process.stderr.splitlines() or [f"exit code {process.returncode}"]
        raise ModelError(
            f"the model cannot be run in a process of its own: {lines[-1]}; is there memory "
            "enough for it?"
        ) from None
    return int(answer) if isinstance(answer, int) else None


def _memory(key: str) -> int | None:
    """Return a line of this process's status, in bytes; None where there is none."""
    try:
        lines = Path(_STATUS).read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(t.split()[1]) for t in lines if t.startswith(f"{key}:")), None)


def _main() -> None:
    """Answer on stdout with the memory that a model added."""
    model, inputs, names, threads, provider = json.loads(sys.stdin.read())
    with np.load(inputs, allow_pickle=False) as stored:
        feeds = {name: stored[f"arr_{k}"] for k, name in enumerate(names)}
    try:
        Path(_RESET).write_text("5")  # the peak starts again at what is held now
    except OSError:
        print("null")
        return
    before = _memory("VmHWM")
    session = Runner(threads, provider).timed(Path(model))
    for _ in range(2):
        session.run(feeds)
    after = _memory("VmHWM")
    print("null" if before is None or after is None else after - before)


if __name__ == "__main__":
    _main()
