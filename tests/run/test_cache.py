"""What is remembered changes no bit, is found only where it holds, and is never trusted blindly."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from command import digits, done, save, tiny_net, tiny_samples

import onnxprune
from onnxprune.run import activations, cache, run
from onnxprune.run.cache import Cache

ROOT = Path(__file__).parents[2]
RESNET = ROOT / "models" / "digits_resnet.onnx"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists what is measured; empty after a run that knew everything."""
    seen: list[str] = []

    def counting(module: ModuleType, name: str) -> None:
        right = getattr(module, name)

        def measure(*args: Any, **settings: Any) -> Any:
            seen.append(name)
            return right(*args, **settings)

        monkeypatch.setattr(module, name, measure)

    counting(activations, "calibrate")
    counting(activations, "measure_moments")
    counting(run, "measure_accuracy")
    return seen


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``tiny.onnx`` and ``data.npz``."""
    monkeypatch.chdir(tmp_path)
    tiny_samples(tmp_path / "data.npz")
    return save(tiny_net(), tmp_path / "tiny.onnx")


def plan(*more: object) -> str:
    """Make a plan and return its text; ``more`` replaces the defaults."""
    common = ["plan", "tiny.onnx", "--calib", "data.npz", "--mode", "channels", "--force"]
    budget = () if "--sparsity" in more else ("--macs", 0.6)
    return done(*common, *budget, *more, "--recover", "full", "--json").stdout


def entries() -> list[Path]:
    folder = cache.folder()
    assert folder is not None
    return sorted(folder.glob("*.npz"))


# -- the same bits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("tiny.onnx", {"sparsity": 0.7, "max_drop": 0.2}),
        ("tiny.onnx", {"sparsity": 0.6, "mode": "weights"}),
        ("tiny.onnx", {"sparsity": 0.5, "metric": "activation", "recover": "bias"}),
        (RESNET, {"macs": 0.6, "mode": "channels"}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("tiny")
def test_same_bits_with_and_without(
    model: str | Path, settings: dict[str, Any], counted: list[str], tmp_path: Path
) -> None:
    data = digits(tmp_path / "few") if model == RESNET else tmp_path / "data.npz"
    results = []
    for use in (False, True, True):
        counted.clear()
        result = onnxprune.prune(model, data, cache=use, **settings)
        report = result.report.to_dict()
        del report["timings"]
        results.append((result.model.SerializeToString(), report))
        assert bool(entries()) == use
        assert ("calibrate" in counted) == (len(results) < 3)
    assert results[0] == results[1] == results[2]


@pytest.mark.usefixtures("tiny")
def test_another_budget_measures_nothing(counted: list[str]) -> None:
    first = plan()
    assert "calibrate" in counted
    assert "measure_moments" in counted
    counted.clear()
    second = plan("--sparsity", 0.3)
    assert counted == []
    assert first != second
    assert second == plan("--sparsity", 0.3, "--no-cache")
    assert "measure_moments" in counted


def test_without_cache_nothing_is_written(tiny: Path) -> None:
    plan("--no-cache")
    done("plan", tiny, "--random-inputs", "--sparsity", 0.5, "--force")
    assert entries() == []


# -- when it holds ---------------------------------------------------------------------------


def other_model() -> None:
    net = tiny_net()
    net.constants[0].raw_data = (0.5 * np.ones(8 * 2 * 9, np.float32)).tobytes()
    save(net, Path("tiny.onnx"))


def other_data() -> None:
    """Of the same size and times."""
    before = Path("data.npz").stat()
    values = dict(np.load("data.npz"))
    values["x"] = values["x"][:, ::-1].copy()
    np.savez("data.npz", **values)
    os.utime("data.npz", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Path("data.npz").stat().st_size == before.st_size


CHANGES: dict[str, tuple[Callable[[], None], tuple[object, ...]]] = {
    "model": (other_model, ()),
    "data": (other_data, ()),
    "seed": (lambda: None, ("--seed", 1)),
    "threads": (lambda: None, ("--threads", 1)),
    "batch": (lambda: None, ("--batch-size", 7)),
    "exclude": (lambda: None, ("--exclude", "conv1*")),
    "inexact": (lambda: None, ("--allow-inexact",)),
    "split": (lambda: None, ("--eval", "data.npz")),
    "squares": (lambda: None, ("--metric", "activation")),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("change", "more"), CHANGES.values(), ids=CHANGES)
def test_what_matters_is_measured_again(
    counted: list[str], change: Callable[[], None], more: tuple[object, ...]
) -> None:
    plan()
    counted.clear()
    change()
    again = plan(*more)
    assert "calibrate" in counted
    assert again == plan(*more, "--no-cache")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("more", [("--align", 2), ("--allocation", "uniform"), ("--sparsity", 0.4)])
def test_what_does_not_matter_is_not(counted: list[str], more: tuple[object, ...]) -> None:
    plan()
    counted.clear()
    plan(*more)
    assert counted == []


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("what", ["__version__", "code"])
def test_another_version_measures_again(
    counted: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan()
    counted.clear()
    if what == "code":
        monkeypatch.setattr(cache, "_source", lambda: "other")
    else:
        monkeypatch.setattr(cache, "__version__", "9.9")
    plan()
    assert "calibrate" in counted


def test_a_folder_is_known_by_its_contents(tmp_path: Path, counted: list[str]) -> None:
    folder = digits(tmp_path / "digits", 8)
    model = ROOT / "models" / "digits_lenet300.onnx"
    common = ["plan", model, "--calib", folder, "--macs", 0.6, "-o", tmp_path / "p.json", "--force"]
    done(*common)
    counted.clear()
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    done(*(moved if a == folder else a for a in common))
    assert counted == [], "a copy is the same"
    one, two = sorted((moved / "3").iterdir())[:2]
    one.write_bytes(two.read_bytes())
    done(*(moved if a == folder else a for a in common))
    assert "calibrate" in counted


def test_nothing_is_kept_where_images_were_skipped(tmp_path: Path) -> None:
    """What was skipped is only known from reading, and belongs into the report."""
    folder = digits(tmp_path / "digits", 20)
    for image in sorted((folder / "3").iterdir())[:10]:
        image.unlink()
        image.write_text("no image")
    model = ROOT / "models" / "digits_lenet300.onnx"
    reports = [
        onnxprune.prune(model, folder, sparsity=0.5, mode="channels", recover="bias").report
        for _ in range(2)
    ]
    assert reports[0].data["skipped"]
    assert reports[0].data == reports[1].data
    assert reports[0].warnings == reports[1].warnings


# -- entries ---------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    """Change a byte of the values, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))


def foreign(path: Path) -> None:
    """An intact entry of something else."""
    np.savez(path, errors=np.zeros(3), **{"onnxprune/key": np.zeros(3, np.uint8)})


def pickled(path: Path) -> None:
    np.savez(path, errors=np.array([{}], dtype=object), allow_pickle=True)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "cut": cut,
    "flip": flip,
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("hello"),
    "foreign": foreign,
    "pickled": pickled,
    "folder": a_folder,
    "swapped": lambda p: shutil.copy(next(e for e in entries() if e != p), p),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_entries_are_measured_again_and_replaced(
    counted: list[str], damage: Callable[[Path], object]
) -> None:
    first = plan()
    for path in entries():
        damage(path)
    counted.clear()
    assert plan() == first
    assert counted
    counted.clear()
    assert plan() == first
    assert counted == [] or damage is a_folder


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_cannot_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    before = plan("--no-cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert plan() == before
    assert file.read_text() == ""


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    found = Cache(tmp_path).recall("a", dict, lambda: {"v": np.arange(3)})
    assert found["v"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_leave_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Cache(tmp_path)
    other = tmp_path / "notes.txt"
    other.write_text("not ours")
    monkeypatch.setattr(cache, "LIMIT", 10_000)

    def recall(name: str, size: int = 3000) -> bool:
        """Return whether it had to be measured."""
        measured = []

        def measure() -> Mapping[str, Any]:
            measured.append(name)
            return {"v": np.zeros(size, np.uint8)}

        own.recall(name, dict, measure)
        for age, path in enumerate(sorted(tmp_path.glob("*.npz"), key=lambda p: p.stat().st_mtime)):
            os.utime(path, (1e9 + age, 1e9 + age))
        return bool(measured)

    assert [recall(n) for n in "ab"] == [True, True]
    assert not recall("a"), "now 'b' is the oldest"
    assert recall("c")
    assert not recall("a")
    assert recall("b")
    assert sum(p.stat().st_size for p in tmp_path.glob("*.npz")) <= 10_000
    monkeypatch.setattr(cache, "LARGEST", 5000)
    assert [recall("big", 6000), recall("big", 6000)] == [True, True]
    assert other.exists()


@pytest.mark.parametrize("home", ["relative/cache", ""])
def test_home(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "onnxprune"


def test_nothing_is_remembered_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(cache, "user_cache_path", nowhere)
    assert cache.folder() is None
    monkeypatch.setattr(cache, "user_cache_path", lambda *_, **__: Path("~/.cache/onnxprune"))
    assert cache.folder() is None, "never a folder named ~ where the program happens to run"
