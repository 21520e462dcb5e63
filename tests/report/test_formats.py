"""A format of the report is one function and one entry in a registry; names cannot steer a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import done, save, tiny_net, tiny_samples

import onnxprune
from onnxprune.report.curve import Curve
from onnxprune.report.formats import FORMATS, rendered
from onnxprune.report.plain import Plain, plain
from onnxprune.report.text import shown

PRUNE = ("prune", "tiny.onnx", "--calib", "data.npz", "--sparsity", 0.5, "--force")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``tiny.onnx`` and ``data.npz``."""
    monkeypatch.chdir(tmp_path)
    tiny_samples(tmp_path / "data.npz")
    save(tiny_net(), tmp_path / "tiny.onnx")
    return tmp_path


def to_markdown(result: Plain) -> str:
    """A toy format: a line for each value at the top."""
    return "".join(f"* {name}: {value}\n" for name, value in result.to_dict().items())


def test_a_format_is_used_from_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "md", to_markdown)
    shown = json.loads(done(*PRUNE, "--json", "--report", "report.md").stdout)
    lines = (here / "report.md").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"* {name}" for name in shown]
    assert f"* split: {shown['split']}" in lines
    done("sweep", "tiny.onnx", "--calib", "data.npz", "--macs", 0.7, "-o", "curve.md")
    assert (here / "curve.md").read_text().startswith("* model: tiny.onnx\n* points: [{")


@pytest.mark.parametrize("ending", [".json", ".txt", ".md", ""])
def test_json_is_for_all_that_is_not_registered(here: Path, ending: str) -> None:
    done(*PRUNE, "--report", f"report{ending}")
    assert json.loads((here / f"report{ending}").read_text())["sparsity"]["requested"] == 0.5


def test_text_is_what_the_terminal_shows(here: Path) -> None:
    printed = done(*PRUNE, "--report", "report.text").stdout
    assert printed == (here / "report.text").read_text() + "wrote tiny.pruned.onnx\n"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_knows_every_kind_of_result(name: str) -> None:
    results: dict[str, Any] = {
        "sparsity": onnxprune.prune("tiny.onnx", "data.npz", sparsity=0.5).report,
        "groups": onnxprune.inspect("tiny.onnx", "data.npz"),
        "loss": onnxprune.evaluate("tiny.onnx", "data.npz"),
        "params": onnxprune.sweep("tiny.onnx", "data.npz", [0.7]),
        "CPUExecutionProvider": onnxprune.bench(["tiny.onnx"], rounds=3, threads=1),
    }
    for word, result in results.items():
        text = rendered(result, Path(f"file.{name}"))
        assert word in text
        assert text.endswith("\n")


def test_names_and_colours_do_not_steer_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    found = onnxprune.evaluate("tiny.onnx", "data.npz")
    assert "\x1b" not in FORMATS["text"](found)
    curve = Curve("m", [], ())
    assert FORMATS["text"](curve).split() == ["macs", "params", "accuracy", "loss"]


def test_what_is_no_result_has_no_text() -> None:
    with pytest.raises(TypeError, match="no text for a int"):
        shown(3)


def test_plain_values() -> None:
    assert plain({1: (float("nan"), 2.0), "a": [float("inf")]}) == {"1": [None, 2.0], "a": [None]}
