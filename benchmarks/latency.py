"""Compare the latency of two models in onnxruntime, in alternation.

Usage: python benchmarks/latency.py ORIGINAL PRUNED [--batch 8] [--threads 2] [--rounds 200]

Each round times one run of either model on the same random input; the ratio is taken round by
round, so that a machine whose speed drifts does not spoil it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxprune import graph
from onnxprune.session import Feeds
from onnxprune.synthetic import synthetic_feeds


def session(path: Path, threads: int) -> ort.InferenceSession:
    """Return a session with default optimisations and a fixed number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # The idle session must not spin on the cores that the other one needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def seconds(model: ort.InferenceSession, feeds: Feeds) -> float:
    """Time one run."""
    start = time.perf_counter()
    model.run(None, dict(feeds))
    return time.perf_counter() - start


def main() -> None:
    """Print median latencies and the ratio with its quartiles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("original", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200)
    a = parser.parse_args()
    feeds = synthetic_feeds(graph.load(a.original), batch=a.batch)
    models = [session(path, a.threads) for path in (a.original, a.pruned)]
    for model in models:
        for _ in range(10):
            seconds(model, feeds)
    times = np.array([[seconds(m, feeds) for m in models] for _ in range(a.rounds)])
    low, ratio, high = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
    before, after = np.median(times, axis=0) * 1e3
    print("| batch | threads | original ms | pruned ms | speed-up (quartiles) |")
    print("|---|---|---|---|---|")
    print(
        f"| {a.batch} | {a.threads} | {before:.2f} | {after:.2f} | "
        f"{ratio:.2f} ({low:.2f}-{high:.2f}) |"
    )


if __name__ == "__main__":
    main()
