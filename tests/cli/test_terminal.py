"""Names that steer a terminal never reach one; JSON stays JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import done, run, save, tiny_net, tiny_samples

from onnxprune.printable import console, printable

EVIL = (
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x9b1m\x7f\u202edlrow\u2066\u200b\ufeff\r\n"
    "onnxprune: error: no\t"
)
ESCAPED = r"\x1b[2J\x1b[31mred\x1b]0;title\x07\x9b1m\x7f\u202edlrow\u2066\u200b\ufeff\r\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``evil.onnx``, whose nodes and tensors have evil names, and data."""
    model = tiny_net().model()
    names = {n: f"{EVIL}{n}" for node in model.graph.node for n in [*node.input, *node.output] if n}
    names["x"] = "x"
    for node in model.graph.node:
        node.name = f"{EVIL}{node.name}"
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for value in (*model.graph.initializer, *model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
    save(model, tmp_path / "evil.onnx")
    tiny_samples(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clean(text: str) -> bool:
    return printable(text, "\n") == text and "\nonnxprune: error: no" not in text


def test_every_steering_character_becomes_an_escape() -> None:
    assert printable(f"{EVIL}a") == f"{ESCAPED}onnxprune: error: no\\ta"
    assert printable("größe 5 µm, 中文 🙂") == "größe 5 µm, 中文 🙂"
    assert printable("a\udcff\u2028\U000e0041") == r"a\udcff\u2028\U000e0041"


COMMANDS: dict[str, list[str]] = {
    "prune": ["prune", "evil.onnx", "--calib", "data.npz", "--sparsity", "0.5", "-o", "o.onnx"],
    "weights": ["prune", "evil.onnx", "--calib", "data.npz", "--sparsity", "0.5", "--mode",
                "weights", "-o", f"{EVIL.replace('/', '')}.onnx"],
    "inspect": ["inspect", "evil.onnx"],
    "inspect with data": ["inspect", "evil.onnx", "--calib", "data.npz"],
    "plan": ["plan", "evil.onnx", "--calib", "data.npz", "--sparsity", "0.5"],
    "bench": ["bench", "evil.onnx", "--seconds", "0.1", "--rounds", "1"],
    "evaluate": ["evaluate", "evil.onnx", "--calib", "data.npz"],
    "sweep": ["sweep", "evil.onnx", "--calib", "data.npz", "--macs", "0.5"],
}  # fmt: skip


@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_what_works(args: list[str]) -> None:
    result = done(*args)
    assert clean(result.stdout)
    assert clean(result.stderr)
    if args[0] in ("prune", "inspect"):
        assert r"\x1b[2J" in result.stdout


@pytest.mark.parametrize("args", [c for c in COMMANDS.values() if c != COMMANDS["weights"]])
def test_json(args: list[str]) -> None:
    more = ["--force"] if args[0] in ("prune", "plan") else []
    result = done(*args, "--json", *more)
    assert clean(result.stdout)
    json.loads(result.stdout)
    if args[0] in ("prune", "inspect", "plan"):
        assert any(EVIL in text for text in _strings(json.loads(result.stdout)))


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [s for k, v in value.items() for s in [str(k), *_strings(v)]]
    if isinstance(value, list):
        return [s for v in value for s in _strings(v)]
    return [value] if isinstance(value, str) else []


def test_errors(here: Path) -> None:
    (here / EVIL.replace("/", "")).mkdir()
    labels = here / "labels"
    for name in ("a", f"b{EVIL}"):
        (labels / name).mkdir(parents=True)
    wrong = onnx.load("evil.onnx")
    wrong.graph.node[0].input[0] = f"{EVIL}nowhere"
    save(wrong, here / "wrong.onnx")
    for args in (
        ["inspect", f"{EVIL}.onnx"],
        ["inspect", EVIL.replace("/", "")],
        ["inspect", "wrong.onnx"],
        ["inspect", "evil.onnx", "--exclude", f"{EVIL}*"],
        ["inspect", "evil.onnx", f"--{EVIL}"],
        ["prune", "evil.onnx", "--calib", "data.npz", "--sparsity", EVIL],
        ["prune", "evil.onnx", "--calib", "labels", "--sparsity", "0.5"],
        ["prune", "evil.onnx", "--calib", "data.npz", "--sparsity", "0.5", "--output", EVIL],
        ["prune", "evil.onnx", "--calib", "data.npz", "--sparsity", "0.99", "--mode", "channels"],
    ):
        result = run(*args)
        assert result.exit_code in (1, 2), result.output
        assert clean(result.stdout)
        assert clean(result.stderr)


def test_a_real_terminal(here: Path) -> None:
    """There rich writes escapes of its own, and none of the model's."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxprune", "inspect", "evil.onnx"],
        stdout=follower, stderr=follower, cwd=here,
        env=os.environ | {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=60) == 0
    assert b"\x1b[2J" not in shown
    assert b"\x1b]0" not in shown
    assert b"\x1b[31m" not in shown
    assert b"\\x1b[2J" in shown


def test_text_of_rich_is_shown_clean(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"title\n{EVIL}")
    table.add_column(EVIL)
    table.add_row(EVIL)
    shown = console(sys.stdout)
    shown.width = 500
    shown.print(table)
    shown.print(Text(f"one\n{EVIL}".replace("\r\n", "")))
    shown.print(EVIL)
    assert clean(capsys.readouterr().out.replace("title\n", ""))


def test_an_encoding_that_lacks_a_character(here: Path) -> None:
    data = np.load("data.npz")
    assert len(data.files) == 2
    process = subprocess.run(
        [sys.executable, "-m", "onnxprune", "evaluate", "evil.onnx", "--calib", "data.npz"],
        capture_output=True, cwd=here, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert rb"\xb1" in process.stdout
