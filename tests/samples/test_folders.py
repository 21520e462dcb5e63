"""Folders: classes, the splits of a data set, and what is neither."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command import Tiny, done, refused, report_of, run, save
from PIL import Image

from onnxprune.samples.folders import class_folders, find_splits

COUNT = 8


def pictures(folder: Path, level: int, count: int = COUNT) -> None:
    rng = np.random.default_rng(level)
    folder.mkdir(parents=True)
    for k in range(count):
        pixels = rng.integers(60 * level, 60 * level + 40, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")


def split(folder: Path, *classes: str, count: int = COUNT) -> Path:
    for k, name in enumerate(classes):
        pictures(folder / name, k, count)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    net = Tiny((3, 6, 6), classes=2)
    net.conv("x", "conv1", 3, 8)
    net.op("Relu", "conv1", "act1")
    net.op("GlobalAveragePool", "act1", "mean")
    net.op("Flatten", "mean", "flat")
    net.op("Gemm", f"flat {net.const('fc.w', 8, 2)} {net.const('fc.b', 2)}", "logits")
    save(net, tmp_path / "two.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prune(data: str, *args: object) -> tuple[dict[str, int], list[str]]:
    report = report_of("prune", "two.onnx", "--calib", data, "--sparsity", 0.4, *args, "--force")
    return report["data"]["samples"], report["warnings"]


def notes(warnings: list[str]) -> list[str]:
    return [w for w in warnings if "splits of a data set" in w]


@pytest.mark.parametrize(
    ("names", "fit", "report"),
    [
        (["train", "val"], "train", "val"),
        (["Train", "VALID", "test"], "Train", "VALID"),
        (["training", "testing"], "training", "testing"),
        (["test", "train"], "train", "test"),
        (["dev", "holdout", "train"], "train", "dev"),
        (["test", "validation"], "validation", "test"),
    ],
)
def test_splits_are_told_from_classes(names: list[str], fit: str, report: str) -> None:
    for k, name in enumerate(names):
        split(Path("data", name), "a", "b", count=COUNT + k)
    (Path("data") / "readme.txt").write_text("a data set")
    shutil.copytree("data/" + names[0], "data/__MACOSX")
    shutil.copytree("data/" + names[0], "data/.hidden")
    samples, warnings = prune("data")
    assert samples["fit"] + samples["select"] == 2 * (COUNT + names.index(fit))
    assert samples["report"] == 2 * (COUNT + names.index(report))
    (note,) = notes(warnings)
    assert f"'{fit}' is calibrated on" in note
    assert f"'{report}' evaluated on" in note
    for other in set(names) - {fit, report}:
        assert f"not used: {other}" in note
    assert not any("2 classes" in w and "chance" not in w for w in warnings)


def test_eval_goes_before_the_split() -> None:
    for name in ("train", "val"):
        split(Path("data", name), "a", "b")
    split(Path("own"), "a", "b", count=5)
    samples, warnings = prune("data", "--eval", "own")
    assert samples["report"] == 10
    assert "not used: val" in notes(warnings)[0]
    samples, warnings = prune("own", "--eval", "data")
    assert samples["report"] == 2 * COUNT
    assert "'val' is used" in notes(warnings)[0]
    samples, warnings = prune("data", "--eval", "data")
    assert len(notes(warnings)) == 2


def test_other_verbs_know_splits() -> None:
    for k, name in enumerate(("train", "val")):
        split(Path("data", name), "a", "b", count=COUNT + k)
    result = done("evaluate", "two.onnx", "--calib", "data")
    assert f"{2 * (COUNT + 1)} samples" in result.stdout
    assert "'val' is used" in result.stderr
    done("sweep", "two.onnx", "--calib", "data", "--macs", "0.5")
    done("inspect", "two.onnx", "--calib", "data")
    args = ["--calib", "data", "--sparsity", 0.4, "--mode", "channels", "--recover", "bias"]
    done("plan", "two.onnx", *args, "-o", "plan.json")
    done("apply", "two.onnx", "plan.json", "--calib", "data", "-o", "a.onnx")
    done("prune", "two.onnx", *args, "-o", "p.onnx")
    assert Path("a.onnx").read_bytes() == Path("p.onnx").read_bytes()


@pytest.mark.parametrize(
    "folders",
    [
        {"train": "", "plane": ""},
        {"train": "inner", "plane": "inner"},
        {"train": "", "test": ""},
        {"train": "inner"},
    ],
    ids=["a train", "with folders", "of images", "alone"],
)
def test_classes_that_are_called_like_splits_stay_classes(folders: dict[str, str]) -> None:
    for k, (name, inner) in enumerate(folders.items()):
        pictures(Path("data", name, inner), k)
    assert find_splits(Path("data")) is None
    assert [f.name for f in class_folders(Path("data"))] == sorted(folders)


def test_a_split_without_labels_is_passed_over() -> None:
    for name in ("train", "val"):
        split(Path("data", name), "a", "b")
    pictures(Path("data", "test"), 0)
    found = find_splits(Path("data"))
    assert found is not None
    assert (found.fit.name, found.others) == ("train", ("test",))


@pytest.mark.parametrize("name", ["__MACOSX", ".git", "@eaDir", "lost+found"])
def test_what_systems_leave_is_no_class(name: str) -> None:
    split(Path("data"), "a", "b")
    pictures(Path("data", name), 2)
    samples, warnings = prune("data")
    assert sum(samples.values()) == 2 * COUNT
    assert not any("3 classes" in w for w in warnings)
    pictures(Path("data", "a", "__MACOSX"), 2)
    assert sum(prune("data")[0].values()) == 2 * COUNT


def test_label_errors_name_the_folders() -> None:
    split(Path("data"), "cat", "dog", "eel")
    for verb in (["prune", "--sparsity", 0.4], ["evaluate"]):
        line = refused(verb[0], "two.onnx", "--calib", "data", *verb[1:])
        assert "label 2 (folder 'eel') is outside the model's classes" in line
        assert "'cat' is 0, 'dog' is 1, 'eel' is 2" in line


def test_the_warning_of_another_number_of_classes_names_the_folders() -> None:
    net = Tiny((3, 6, 6), classes=30)
    net.conv("x", "conv1", 3, 8)
    net.op("Relu", "conv1", "act1")
    net.op("GlobalAveragePool", "act1", "mean")
    net.op("Flatten", "mean", "flat")
    net.op("Gemm", f"flat {net.const('fc.w', 8, 30)} {net.const('fc.b', 30)}", "logits")
    save(net, Path("thirty.onnx"))
    split(Path("data"), *(f"c{k}" for k in (1, 2)))
    result = run("prune", "thirty.onnx", "--calib", "data", "--sparsity", 0.4)
    assert "has 2 classes, the model's output 'logits' has 30" in result.stderr
    assert "'c1' is 0, 'c2' is 1" in result.stderr


def test_a_class_that_the_calibration_split_lacks() -> None:
    split(Path("data", "train"), "a", "b")
    split(Path("data", "val"), "a", "c")
    line = refused("prune", "two.onnx", "--calib", "data", "--sparsity", 0.4)
    assert "class 'c' is not a class of the calibration set" in line
