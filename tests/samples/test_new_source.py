"""A kind of samples is one file and one entry, and is used from the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import done, run, save, tiny_arrays, tiny_net, tiny_samples

from onnxprune.arrays import I64, Array
from onnxprune.model.model import TensorSpec
from onnxprune.samples import sources
from onnxprune.samples.dataset import Batch, Dataset, Scaling
from onnxprune.samples.sources import SOURCES, Source


@dataclass(frozen=True, eq=False)
class Table(Dataset):
    """Rows of a CSV file: a label, then values."""

    name: str
    values: Array

    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:
        for k in range(0, len(rows), batch_size):
            part = rows[k : k + batch_size]
            yield Batch({self.name: self.values[part]}, self.labels[part])


def open_table(path: Path, inputs: Sequence[TensorSpec], scaling: Scaling) -> Dataset:
    scaling.refuse("tables")
    with path.open() as file:
        rows = [[float(v) for v in row] for row in csv.reader(file)]
    labels = np.array([int(row[0]) for row in rows])
    shape = [int(n) for n in inputs[0].shape[1:]]
    values = np.array([row[1:] for row in rows], inputs[0].dtype).reshape(-1, *shape)
    names = tuple(str(k) for k in range(labels.max() + 1))
    return Table(path, labels, names, inputs[0].name, values)


TABLE = Source("a .csv of labels and values", lambda p: p.suffix == ".csv", open_table)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tiny_net(), tmp_path / "m.onnx")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    arrays, path = tiny_arrays(), tmp_path / "t.csv"
    with path.open("w") as file:
        for x, y in zip(arrays["x"], arrays["y"], strict=True):
            csv.writer(file).writerow([int(y), *(repr(float(v)) for v in x.ravel())])
    return path


def test_a_source_is_used_from_the_command_line(model: Path, table: Path, tmp_path: Path) -> None:
    refused = run("evaluate", model, "--calib", table)
    assert refused.exit_code == 1
    assert "nor a .csv" not in refused.stderr
    SOURCES.append(TABLE)
    try:
        out = tmp_path / "o.onnx"
        done("prune", model, "--calib", table, "--sparsity", "0.3", "-o", out, "--force")
        found = json.loads(done("evaluate", model, "--calib", table, "--json").stdout)
    finally:
        SOURCES.remove(TABLE)
    arrays = tiny_samples(tmp_path / "d.npz")
    same = json.loads(done("evaluate", model, "--calib", arrays, "--json").stdout)
    assert found == same
    assert out.exists()


def test_an_installed_source_is_found(
    model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(group: str) -> list[SimpleNamespace]:
        assert group == "onnxprune.sources"
        return [SimpleNamespace(load=lambda: TABLE)]

    monkeypatch.setattr(sources, "entry_points", installed)
    done("evaluate", model, "--calib", table)
    refused = run("evaluate", model, "--calib", model)
    assert "an .npz of arrays with y nor a .csv of labels and values" in refused.stderr
