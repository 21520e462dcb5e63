"""Run the tests' oracles over many more generated networks than CI does.

Usage: python benchmarks/fuzz_graphs.py [--graphs 3000] [--seed 0]

Every network is traced, half emptied and compared with its masked original, permuted, and left
alone, each on other data and at two sizes of every dynamic axis; the first failure is shown with
the smallest network that hypothesis can shrink it to. A third of the networks are those of CI, the
others have dynamic axes, several outputs, sizes that depend on the data, and subgraphs. One in
five also goes through `prune` as sweep.py has it, and must come out right or be refused.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, seed, settings
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from oracle import Findings, check
from strategies import BATCH, networks
from strategies_open import open_networks
from sweep import SETTINGS, attempt


def pruned(proto: ModelProto, path: Path) -> str:
    """Prune a network with all that belongs to it; return what came of it.

    Raises:
        AssertionError: if that is a crash or a wrong model.
    """
    path.write_bytes(proto.SerializeToString())
    free = {d.dim_param for v in proto.graph.input for d in v.type.tensor_type.shape.dim}
    dims = dict.fromkeys(free - {"", BATCH}, 6)  # attention over all pixels grows fast
    row = attempt(path, 0.3, SETTINGS | {"dims": dims})
    assert row.outcome in ("verified", "short", "refused"), f"{row.outcome}: {row.note}"
    return row.outcome


def main() -> None:
    """Fuzz and print what was covered."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--graphs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=Path("failing.onnx"), help="where to put it")
    a = parser.parse_args()
    found: list[Findings] = []
    outcomes: list[str] = []

    @seed(a.seed)
    @settings(
        max_examples=a.graphs, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.one_of(networks(), open_networks(), open_networks()))
    def hold(proto: ModelProto) -> None:
        number = zlib.crc32(proto.SerializeToString())
        try:
            found.append(check(proto, seed=number, share=0.2 + 0.2 * (number % 4)))
            if number % 5 == 0:
                outcomes.append(pruned(proto, a.save))
        except Exception as error:
            error.add_note(f"network: {proto.doc_string}")
            a.save.write_bytes(proto.SerializeToString())
            raise

    start = time.perf_counter()
    hold()
    a.save.unlink(missing_ok=True)  # of a network that held
    groups = sum(f.groups for f in found)
    print(
        f"{len(found)} networks, seed {a.seed}: no failure; {sum(f.removed for f in found)} units "
        f"removed, {sum(f.permuted for f in found)} of {groups} groups permuted, masks visible in "
        f"{sum(f.visible for f in found)}; through prune: {dict(Counter(outcomes))}; "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
