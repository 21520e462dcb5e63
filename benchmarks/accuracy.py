"""Accuracy without training: prune reference models with their default settings and measure.

    python benchmarks/accuracy.py DATA --out FOLDER [--seeds 3] [--only NAME] [--peers PYTHON]

DATA holds ``mnist.npz``, ``cifar10_jpeg.tar`` and the three models. Every row draws its
calibration samples from the training images, once for each seed, and reports top-1 on all test
images, which decide nothing. Writes ``accuracy.md`` and ``accuracy.json`` after every run, so
that an interrupted benchmark leaves what it has. With the interpreter of an environment that has
the peers (see ``peer_accuracy.py``), rows that remove channels get what they reach at that budget.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onnxprune import evaluate, inspect, prune

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, how it is cut, and the accuracy wanted."""

    model: str
    mode: str
    budget: dict[str, float]
    samples: int
    wanted: float

    @property
    def name(self) -> str:
        """Return a short name."""
        (key, value), *_ = self.budget.items()
        return f"{self.model} {self.mode} {key} {value:g}"


CIFAR, MNIST = 2048, 5000
ROWS = [
    Row("cifar_resnet56", "channels", {"macs": 0.7}, CIFAR, 89.2),
    Row("cifar_resnet56", "channels", {"macs": 0.5}, CIFAR, 88.0),
    Row("cifar_resnet56", "channels", {"macs": 0.3}, CIFAR, 81.5),
    Row("cifar_resnet56", "channels", {"sparsity": 0.5}, CIFAR, 85.8),
    Row("cifar_resnet20", "channels", {"macs": 0.7}, CIFAR, 85.5),
    Row("cifar_resnet56", "weights", {"sparsity": 0.7}, CIFAR, 89.2),
    Row("cifar_resnet56", "weights", {"sparsity": 0.8}, CIFAR, 87.5),
    Row("cifar_resnet56", "weights", {"sparsity": 0.9}, CIFAR, 79.0),
    Row("mnist_lenet300", "weights", {"sparsity": 0.9}, MNIST, 98.1),
    Row("mnist_lenet300", "weights", {"sparsity": 0.95}, MNIST, 97.2),
    Row("mnist_lenet300", "weights", {"sparsity": 0.98}, MNIST, 94.5),
    Row("mnist_lenet300", "channels", {"sparsity": 0.8}, MNIST, 97.5),
]


def draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw sample numbers at random, every class alike."""
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    each = np.full(len(classes), count // len(classes))
    each[: count - each.sum()] += 1
    parts = [
        rng.choice(np.flatnonzero(labels == c), n, replace=False)
        for c, n in zip(classes, each, strict=True)
    ]
    return np.sort(np.concatenate(parts))


def mnist(data: Path, work: Path, count: int, seeds: int) -> tuple[list[Path], Path]:
    """Write the calibration sets and the test set of MNIST."""
    arrays = np.load(data / "mnist.npz")

    def write(name: str, x: np.ndarray, y: np.ndarray) -> Path:
        path = work / name
        values = x.reshape(len(x), -1).astype(np.float32) / 255
        np.savez(path, x=values, y=y.astype(np.int64))
        return path

    drawn = [draw(arrays["ytr"], count, seed) for seed in range(seeds)]
    calibration = [
        write(f"mnist-{k}.npz", arrays["xtr"][rows], arrays["ytr"][rows])
        for k, rows in enumerate(drawn)
    ]
    return calibration, write("mnist-test.npz", arrays["xte"], arrays["yte"])


def cifar(data: Path, work: Path, count: int, seeds: int) -> tuple[list[Path], Path]:
    """Write the calibration sets and the test set of CIFAR-10, in one pass over the archive."""
    with tarfile.open(data / "cifar10_jpeg.tar") as archive:
        members = [m for m in archive.getmembers() if m.isfile() and m.name.endswith(".jpg")]
        part = np.array([m.name.split("/")[-3] for m in members])
        names = np.array([m.name.split("/")[-2] for m in members])
        labels = np.searchsorted(np.unique(names), names)
        train = np.flatnonzero(part == "train")
        chosen = [train[draw(labels[train], count, seed)] for seed in range(seeds)]
        test = np.flatnonzero(part == "test")
        images: dict[int, np.ndarray] = {}
        for k in np.unique(np.concatenate([test, *chosen])):
            file = archive.extractfile(members[k])
            assert file is not None
            pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")) / 255
            images[int(k)] = ((pixels - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)

    def write(name: str, rows: np.ndarray) -> Path:
        path = work / name
        np.savez(path, image=np.stack([images[int(k)] for k in rows]), y=labels[rows])
        return path

    calibration = [write(f"cifar-{k}.npz", rows) for k, rows in enumerate(chosen)]
    return calibration, write("cifar-test.npz", test)


def measure(row: Row, data: Path, calibration: Path, test: Path, seed: int) -> dict[str, Any]:
    """Prune once with the defaults and return what came out."""
    start = time.perf_counter()
    result = prune(
        data / f"{row.model}.onnx",
        calibration,
        **row.budget,
        mode=row.mode,  # type: ignore[arg-type]
        eval_data=test,
        seed=seed,
        batch_size=64,
    )
    report = result.report.to_dict()
    return {
        "seed": seed,
        "before": 100 * report["before"]["accuracy"],
        "after": 100 * report["after"]["accuracy"],
        "macs": report["macs"]["achieved"],
        "sparsity": report["sparsity"]["achieved"],
        "seconds": time.perf_counter() - start,
        "timings": report["timings"],
        "warnings": report["warnings"],
    }


PEERS = {"torch-pruning": ("macs", "sparsity"), "onnxsim": ("sparsity",)}
"""Peers and the budgets that they know."""


def measure_peers(row: Row, data: Path, test: Path, python: Path, work: Path) -> dict[str, Any]:
    """Prune with each peer, without training, and evaluate what runs."""
    model = data / f"{row.model}.onnx"
    before = inspect(model).cost
    found: dict[str, Any] = {}
    ((key, value),) = row.budget.items()
    for tool, budgets in PEERS.items():
        if row.mode != "channels" or key not in budgets:
            continue
        out = work / f"{tool}.onnx"
        out.unlink(missing_ok=True)
        script = Path(__file__).with_name("peer_accuracy.py")
        command = [str(python), str(script), tool, str(model), str(out), f"--{key}", str(value)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode or not out.exists():
            print(run.stderr[-400:], file=sys.stderr)
            found[tool] = {"failed": (run.stderr.strip().splitlines() or ["no output"])[-1]}
            continue
        after = inspect(out).cost
        found[tool] = {
            "after": 100 * evaluate(out, test, batch_size=64).value,
            "macs": after.macs / before.macs,
            "sparsity": 1 - after.weights / before.weights,
        }
    return found


def table(results: dict[str, list[dict[str, Any]]], peers: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"| model | cut | images | before | wanted | mean | spread | runs | MACs left | seconds | "
        f"{' | '.join(PEERS)} |",
        "|" + "---|" * (10 + len(PEERS)),
    ]
    for row in ROWS:
        runs = results.get(row.name, [])
        if not runs:
            continue
        after = [r["after"] for r in runs]
        (key, value), *_ = row.budget.items()
        others = " | ".join(_shown(peers.get(row.name, {}).get(tool)) for tool in PEERS)
        lines.append(
            f"| {row.model} | {row.mode}, {key} {value:g} | {row.samples} | "
            f"{runs[0]['before']:.2f} | {row.wanted} | {statistics.mean(after):.2f} | "
            f"{max(after) - min(after):.2f} | {len(runs)} | "
            f"{statistics.mean(r['macs'] for r in runs):.3f} | "
            f"{statistics.mean(r['seconds'] for r in runs):.0f} | {others} |"
        )
    return "\n".join(lines) + "\n"


def _shown(peer: dict[str, Any] | None) -> str:
    if peer is None:
        return "-"
    return f"{peer['after']:.2f} (MACs {peer['macs']:.3f})" if "after" in peer else "failed"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the reference data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration set")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--peers", type=Path, help="interpreter of an environment with the peers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if options.only in row.name]
    results: dict[str, list[dict[str, Any]]] = {}
    peers: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sets: dict[str, tuple[list[Path], Path]] = {}
        for family, read in (("mnist", mnist), ("cifar", cifar)):
            own = [row for row in rows if row.model.startswith(family)]
            if own:
                sets[family] = read(options.data, work, own[0].samples, options.seeds)

        def write() -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            (options.out / "accuracy.md").write_text(table(results, peers))
            values = {"results": results, "peers": peers, "peak_mib": peak}
            (options.out / "accuracy.json").write_text(json.dumps(values, indent=2) + "\n")

        for seed in range(options.seeds):
            for row in rows:
                calibration, test = sets[row.model.split("_")[0]]
                found = measure(row, options.data, calibration[seed], test, seed)
                results.setdefault(row.name, []).append(found)
                print(f"{row.name}: {found['after']:.2f} ({found['seconds']:.0f} s)", flush=True)
                if options.peers and not seed:
                    peers[row.name] = measure_peers(row, options.data, test, options.peers, work)
                write()


if __name__ == "__main__":
    main()
