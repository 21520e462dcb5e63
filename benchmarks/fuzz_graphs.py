"""Run the tests' oracles over many more generated networks than CI does.

Usage: python benchmarks/fuzz_graphs.py [--graphs 2000] [--seed 0]

Every network is traced, half emptied and compared with its masked original, permuted, and left
alone; the first failure is shown with the smallest network that hypothesis can shrink it to.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from oracle import Findings, check
from strategies import networks


def main() -> None:
    """Fuzz and print what was covered."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    found: list[Findings] = []

    @seed(a.seed)
    @settings(
        max_examples=a.graphs, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(networks())
    def hold(proto: ModelProto) -> None:
        found.append(check(proto, seed=len(found), share=0.2 + 0.2 * (len(found) % 4)))

    start = time.perf_counter()
    hold()
    groups = sum(f.groups for f in found)
    print(
        f"{len(found)} networks, seed {a.seed}: no failure; {sum(f.removed for f in found)} units "
        f"removed, {sum(f.permuted for f in found)} of {groups} groups permuted, masks visible in "
        f"{sum(f.visible for f in found)}; {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
