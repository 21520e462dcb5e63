"""Measure what onnxprune's own work costs on a model.

Usage: python benchmarks/overhead.py MODEL DATA.npz [--rounds 5]

Prints the CPU time of calibration on one thread, with and without the states of rectifiers, as a
ratio to a plain onnxruntime forward over the same batches (in alternation; CPU time, because other
programs disturb it less), the seconds of tracing and rewriting, and the peak memory of the whole
command with `--recover bias` at a tenth and at all of the samples.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune.decide.score import weight_points
from onnxprune.measure.calibrate import Watched, calibrate
from onnxprune.measure.entropy import watch
from onnxprune.model import model as graph
from onnxprune.model.folding import fold
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.session import Session
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.samples.sources import open_dataset
from onnxprune.structure.rectifiers import find_rectifiers
from onnxprune.structure.trace import trace


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes."""
    start = clock()
    work()
    return clock() - start


def stages(model_path: Path, data: Path, rounds: int) -> None:
    """Print the calibration ratio and the seconds of trace and rewrite."""
    model = graph.load(model_path)
    dataset = open_dataset(data, model.inputs)
    batches = list(dataset.batches(np.arange(min(len(dataset.labels), 1024)), 32))
    shapes = observe(model, batches[0].feeds)
    folded = fold(model, shapes)
    structure = trace(folded, shapes)
    plain = Session(model.proto, threads=1)
    channels = Watched(folded, shapes, weight_points(structure))
    rectifiers = find_rectifiers(folded, shapes, structure)
    states = watch(folded, shapes, rectifiers)
    watched = replace(states, points=[*channels.points, *states.points])
    classes = len(dataset.class_names)

    def forward() -> None:
        for batch in batches:
            plain.run(batch.feeds)

    def gather() -> None:
        calibrate(watched, lambda: batches, classes=classes, runner=Runner(1))

    def gather_less() -> None:
        calibrate(channels, lambda: batches, classes=classes, runner=Runner(1))

    gather(), gather_less(), forward()
    works = (gather, gather_less, forward)
    times = np.array([[timed(w, time.process_time) for w in works] for _ in range(rounds)])
    kept = np.ones(len(structure.units), dtype=bool)
    for group in structure.groups:
        kept[group.units[: len(group.units) // 2]] = False
    plan = plan_from_units(model.sha256, structure, kept)
    tracing = min(timed(lambda: trace(folded, shapes)) for _ in range(rounds))
    rewriting = min(
        timed(lambda: rewrite(Cut(folded, structure, shapes, plan))) for _ in range(rounds)
    )
    what = f"{len(channels.points)} points, {len(rectifiers)} rectifiers"
    for k, name in enumerate((what, "without rectifiers")):
        low, ratio, high = np.percentile(times[:, k] / times[:, 2], [0, 50, 100])
        print(f"calibration / plain forward, {name}: {ratio:.2f} ({low:.2f}-{high:.2f})")
    print(f"trace: {tracing:.3f} s, rewrite: {rewriting:.3f} s")


def peak_memory(model: Path, data: Path, samples: int) -> float:
    """Return the peak resident megabytes of one run on the first ``samples`` samples."""
    arrays = np.load(data)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "part.npz")
        rows = np.random.default_rng(0).permutation(len(arrays["y"]))[:samples]
        np.savez(part, **{k: arrays[k][rows] for k in arrays.files})
        del arrays
        command = [sys.executable, "-m", "onnxprune", str(model), "--calib", str(part)]
        command += [
            "--sparsity",
            "0.3",
            "--recover",
            "bias",
            "-q",
            "-o",
            str(Path(folder, "out.onnx")),
        ]
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(_run, (command,))


def _run(command: list[str]) -> float:
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    stages(a.model, a.data, a.rounds)
    total = len(np.load(a.data)["y"])
    few, many = (peak_memory(a.model, a.data, n) for n in (total // 10, total))
    print(f"peak memory: {few:.0f} MB at {total // 10} samples, {many:.0f} MB at {total}")


if __name__ == "__main__":
    main()
