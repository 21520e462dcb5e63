"""Bad input: one line that says what is wrong, the right exit code, and nothing written."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import (
    ANY_MODEL,
    DIGITS_TEST,
    LENET,
    ROOT,
    Tiny,
    digits,
    done,
    python,
    refused,
    report_of,
    run,
    save,
    tiny_net,
    tiny_samples,
    tree,
)
from onnx import numpy_helper
from PIL import Image

import onnxprune
from onnxprune import OnnxpruneError
from onnxprune.model.model import Model
from onnxprune.run import execute
from onnxprune.samples.images import MAX_UNREADABLE


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``tiny.onnx`` and ``data.npz``."""
    save(tiny_net(), tmp_path / "tiny.onnx")
    tiny_samples(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(**changes: object) -> list[object]:
    """Return the arguments of a run that works, some changed; None leaves one out."""
    values = {"model": "tiny.onnx", "calib": "data.npz", "sparsity": 0.5, "out": "out.onnx"}
    values |= changes
    args: list[object] = ["prune", values.pop("model")]
    for name, value in values.items():
        if value is True:
            args.append(f"--{name}")
        elif value is not None:
            args += [f"--{name.replace('_', '-')}", value]
    return args


def test_the_command_without_changes_works() -> None:
    done(*command())
    assert Path("out.onnx").exists()


# -- models ----------------------------------------------------------------------------------


def no_weight(target: Path) -> None:
    net = Tiny((3,))
    net.op("Relu", "x", "logits")
    save(net, target)
    tiny_samples(target.with_name("data.npz"), x=np.zeros((60, 3), np.float32))


def dense(target: Path) -> None:
    net = Tiny((5,))
    net.op("Gemm", f"x {net.const('w', 5, 3)}", "logits")
    save(net, target)


def external(target: Path) -> None:
    save(tiny_net(), target, save_as_external_data=True, location="gone.bin", size_threshold=0)
    target.with_name("gone.bin").unlink()


def invalid(target: Path) -> None:
    model = tiny_net().model()
    model.graph.node[0].input[0] = "nowhere"
    save(model, target)


def no_kernel(target: Path) -> None:
    model = tiny_net().model()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Swirl", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    save(model, target)


BAD_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: None, "no such file"),
    "empty": (lambda p: p.touch(), "the file is empty"),
    "folder": (lambda p: p.mkdir(), "cannot be read"),
    "random": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), "not an ONNX model"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "not an ONNX model"),
    "text": (lambda p: p.write_text("import this\n" * 50), "not an ONNX model"),
    "image": (lambda p: Image.new("L", (8, 8)).save(p, "png"), "not an ONNX model"),
    "npz": (lambda p: shutil.copy("data.npz", p), "not an ONNX model"),
    "invalid graph": (invalid, "not a valid ONNX model.*nowhere"),
    "unknown operator": (no_kernel, "Swirl"),
    "no weight": (no_weight, "no prunable weight.*Conv.*Gemm"),
    "dynamic channels": (
        lambda p: save(tiny_net(channels="C", size=5), p),
        "'x' has a dynamic channel dimension.*axis 1.*'C'",
    ),
    "external data missing": (external, r"external data.*gone\.bin"),
}


@pytest.mark.parametrize("mode", ANY_MODEL)
@pytest.mark.parametrize(("build", "reason"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_model(here: Path, build: Callable[[Path], Any], reason: str, mode: str) -> None:
    build(here / "bad.onnx")
    line = refused(*command(model="bad.onnx", mode=mode))
    assert re.search(reason, line), line


@pytest.mark.parametrize("name", [n for n in BAD_MODELS if n != "no weight"])
@pytest.mark.parametrize("verb", ["inspect", "evaluate"])
def test_bad_model_elsewhere(here: Path, name: str, verb: str) -> None:
    build, reason = BAD_MODELS[name]
    build(here / "bad.onnx")
    line = refused(verb, "bad.onnx", *(["--calib", "data.npz"] if verb == "evaluate" else []))
    assert re.search(reason, line), line


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_model(share: float) -> None:
    whole = Path("tiny.onnx").read_bytes()
    Path("short.onnx").write_bytes(whole[: int(len(whole) * share)])
    assert "short.onnx" in refused(*command(model="short.onnx"))


def test_truncated_external_data(here: Path) -> None:
    model = here / "ext.onnx"
    save(tiny_net(), model, save_as_external_data=True, location="ext.bin", size_threshold=0)
    os.truncate("ext.bin", 100)
    assert "ext.onnx" in refused(*command(model=model))


def test_no_channel_to_remove(here: Path) -> None:
    dense(here / "dense.onnx")
    tiny_samples(here / "five.npz", x=np.random.default_rng(0).random((60, 5), np.float32))
    line = refused(*command(model="dense.onnx", calib="five.npz", mode="channels"))
    assert "no channel" in line
    assert "'logits' is a model output" in line
    assert "--mode weights" in line
    done(*command(model="dense.onnx", calib="five.npz", mode="weights"))


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_exclude_that_matches_nothing(mode: str) -> None:
    line = refused(*command(mode=mode, exclude="conv9*"))
    assert "'conv9*'" in line
    assert "'conv9*'" in refused(*command(mode=mode, exclude="*conv1"), "--exclude", "conv9*")
    assert "'conv9*'" in refused("inspect", "tiny.onnx", "--exclude", "conv9*")


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_exclude_that_matches_everything(mode: str) -> None:
    assert "excluded" in refused(*command(mode=mode, exclude="*"))


def test_unknown_output() -> None:
    line = refused(*command(output="probabilities"))
    assert "probabilities" in line
    assert "logits" in line


def test_exclude_finds_the_names_of_the_file(here: Path) -> None:
    net = Tiny((5,))
    net.op("Transpose", net.const("first.w", 16, 5), "turned", perm=[1, 0])
    net.op("MatMul", "x turned", "hidden")
    net.op("Relu", "hidden", "act")
    net.op("MatMul", f"act {net.const('second.w', 16, 3)}", "logits")
    save(net, here / "turned.onnx")
    tiny_samples(here / "five.npz", x=np.random.default_rng(0).random((60, 5), np.float32))
    done(
        *command(
            model="turned.onnx", calib="five.npz", mode="weights", exclude="first.w", sparsity=0.2
        )
    )


@pytest.mark.parametrize("verb", ["prune", "inspect"])
def test_names_that_look_like_markup(here: Path, verb: str) -> None:
    model = tiny_net().model()
    for node in model.graph.node:
        node.output[:] = [name.replace("logits", "[/a]logits[b]") for name in node.output]
    model.graph.output[0].name = "[/a]logits[b]"
    save(model, here / "odd.onnx")
    result = done(*(command(model="odd.onnx") if verb == "prune" else ["inspect", "odd.onnx"]))
    assert "[/a]logits[b]" in result.stdout


# -- samples ---------------------------------------------------------------------------------


def images(root: Path, *classes: str, count: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(15 * k, 15 * k + 60, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def loose_images(root: Path) -> None:
    images(root, "a")
    for file in (root / "a").iterdir():
        file.rename(root / file.name)
    (root / "a").rmdir()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: None, "no such file or folder"),
    "empty": (lambda p: p.mkdir(), "empty"),
    "empty classes": (lambda p: images(p, "0", "1", count=0), "empty"),
    "one class": (lambda p: images(p, "0"), "only one class.*'0'"),
    "one class with images": (
        lambda p: (images(p, "3"), (p / "4").mkdir()),
        "only one class.*'3'",
    ),
    "no class folders": (loose_images, "class folder"),
    "more classes than the model": (
        lambda p: images(p, *map(str, range(11)), count=6),
        r"(label 10 \(folder '10'\) is outside the model's classes.*10|class '10' is not a class)",
    ),
    "text file": (lambda p: p.write_text("0,1,2\n"), "with images nor an .npz"),
}


@pytest.mark.parametrize("option", ["calib", "eval"])
@pytest.mark.parametrize(("build", "reason"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_folder(
    here: Path, build: Callable[[Path], Any], reason: str, option: str
) -> None:  # fmt: skip
    build(here / "bad")
    images(here / "good", *map(str, range(10)))
    line = refused(*command(**{"model": LENET, "calib": "good", option: "bad"}))
    assert re.search(reason, line), line


ROWS = np.arange(60) % 3
X = np.random.default_rng(0).standard_normal((60, 2, 3, 3)).astype(np.float32)


def spoilt(value: float) -> Any:
    x = X.copy()
    x[7, 1, 2, 0] = value
    return x


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "one class": ({"y": ROWS * 0}, "only one class"),
    "labels outside": ({"y": ROWS + 1}, "label 3 is outside the model's classes.*'logits' has 3"),
    "far outside": ({"y": ROWS * 10**9}, "'y'"),
    "negative": ({"y": ROWS - 1}, "'y' has label -1"),
    "fractions": ({"y": ROWS + 0.5}, "'y' has label 0.5"),
    "one-hot": ({"y": np.eye(3)[ROWS]}, "argmax"),
    "names": ({"y": ROWS.astype(str)}, "'y'"),
    "shape": ({"x": X[:, :1]}, r"'x' has shape \[60, 1, 3, 3\], expected \[N, 2, 3, 3\]"),
    "rank": ({"x": X.reshape(60, 18)}, r"shape \[60, 18\], expected \[N, 2, 3, 3\]"),
    "scalar": ({"x": np.float32(1)}, "shape"),
    "dtype": ({"x": X.astype(np.int64)}, "'x' is int64, expected float32"),
    "bytes": ({"x": X.astype(np.uint8)}, "'x' is uint8, expected float32.*255"),
    "complex": ({"x": X.astype(np.complex64)}, "'x' is complex64"),
    "rows": ({"x": X[:50]}, "differ in their number of samples"),
    "no rows": ({"x": X[:0], "y": ROWS[:0]}, "empty"),
    "nan": ({"x": spoilt(np.nan)}, "'x' has NaN or infinity.*row 7"),
    "infinity": ({"x": spoilt(-np.inf)}, "'x' has NaN or infinity.*row 7"),
    "overflow": ({"x": spoilt(1).astype(np.float64) * 1e300}, "'x' has NaN or infinity"),
    "huge": ({"x": np.clip(X, -1, 1) * np.float32(3e38)}, "NaN or inf"),
}


@pytest.mark.parametrize("mode", ANY_MODEL)
@pytest.mark.parametrize(("arrays", "reason"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(here: Path, arrays: dict[str, Any], reason: str, mode: str) -> None:
    tiny_samples(here / "bad.npz", **arrays)
    line = refused(*command(calib="bad.npz", mode=mode))
    assert re.search(reason, line), line
    assert re.search(reason, refused("evaluate", "tiny.onnx", "--calib", "bad.npz"))


@pytest.mark.parametrize("missing", ["x", "y"])
def test_missing_array(missing: str) -> None:
    arrays = {"x": X, "y": ROWS}
    del arrays[missing]
    np.savez("bad.npz", **arrays)
    assert f"'{missing}'" in refused(*command(calib="bad.npz"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_npz(share: float) -> None:
    whole = Path("data.npz").read_bytes()
    Path("bad.npz").write_bytes(whole[: int(len(whole) * share)])
    assert "bad.npz" in refused(*command(calib="bad.npz"))


class Bomb:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.makedirs, ("exploded", 0o777, True)


@pytest.mark.parametrize("name", ["x", "y", "other"])
def test_pickles_are_not_loaded(name: str) -> None:
    bomb = np.empty(60, dtype=object)
    bomb[:] = [Bomb() for _ in range(60)]
    arrays = {"x": X, "y": ROWS} | {name: bomb}
    np.savez("bad.npz", **arrays, allow_pickle=True)
    if name == "other":
        done(*command(calib="bad.npz"))
    else:
        assert "pickle" in refused(*command(calib="bad.npz"))
    assert not Path("exploded").exists()
    with np.load("bad.npz", allow_pickle=True) as archive:
        archive[name]
    assert Path("exploded").exists()  # the bomb is live


def test_raw_pickle_in_an_archive() -> None:
    payload = io.BytesIO()
    np.save(payload, np.array([Bomb()], dtype=object), allow_pickle=True)
    pickled = payload.getvalue()[payload.getvalue().index(b"\n") + 1 :]
    with zipfile.ZipFile("bad.npz", "w") as archive:
        archive.writestr("x.npy", pickled)
        archive.writestr("y.npy", pickled)
    refused(*command(calib="bad.npz"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("scale", ["--mean", "--std"])
def test_scaling_of_arrays(scale: str) -> None:
    assert "mean and std" in refused(*command(), scale, "0.5")


@pytest.mark.parametrize("value", ["0.1,0.2", "nan", "inf"])
def test_bad_mean(here: Path, value: str) -> None:
    images(here / "good", *map(str, range(10)))
    assert "mean is" in refused(*command(model=LENET, calib="good", mean=value))


def test_std_of_zero(here: Path) -> None:
    images(here / "good", *map(str, range(10)))
    assert "no 0 in std" in refused(*command(model=LENET, calib="good", std="0"))


@pytest.mark.parametrize("broken", [1, 5])
def test_few_unreadable_images_are_skipped(here: Path, broken: int) -> None:
    folder = images(here / "some", *map(str, range(10)))
    for k in range(broken):
        (folder / str(k) / "3.png").write_bytes(b"not an image")
    result = done(*command(model=LENET, calib="some"), "--json")
    (line,) = [w for w in result.stderr.splitlines() if "could not be read" in w]
    assert line.startswith(f"onnxprune: warning: {broken} image")
    assert re.search(r"some/\d/3\.png", line)
    assert Path("out.onnx").exists()


def test_many_unreadable_images_are_refused(here: Path) -> None:
    folder = images(here / "some", *map(str, range(10)))
    allowed = int(100 * MAX_UNREADABLE)
    for k in range(allowed + 1):
        (folder / str(k % 10) / f"{k // 10}.png").write_bytes(b"not an image")
    line = refused(*command(model=LENET, calib="some"))
    assert f"{allowed + 1} of 100 images cannot be read" in line
    assert re.search(r"some/\d/\d\.png", line)


def test_evaluate_warns_of_unreadable_images(here: Path) -> None:
    folder = images(here / "some", *map(str, range(10)))
    (folder / "0" / "3.png").write_bytes(b"not an image")
    assert "3.png" in done("evaluate", LENET, "--calib", "some").stderr


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_nan_in_the_scores(here: Path, mode: str) -> None:
    save(tiny_net(between="Sqrt"), here / "sqrt.onnx")
    line = refused(*command(model="sqrt.onnx", mode=mode))
    assert "NaN or infinite" in line
    assert "logits" in line
    refused("evaluate", "sqrt.onnx", "--calib", "data.npz")


@pytest.mark.parametrize("mode", ANY_MODEL)
@pytest.mark.parametrize("kind", ["Sqrt", "Log", "Exp"])
def test_nan_in_activations(here: Path, kind: str, mode: str) -> None:
    """The bad values do not reach the scores, but a second output."""
    net = tiny_net()
    net.op("Mul", f"conv1 {net.const('big', 1)}", "scaled")
    net.constants[-1].CopyFrom(numpy_helper.from_array(np.float32([1e4]), "big"))
    net.op(kind, "scaled", "spoilt")
    net.conv("spoilt", "aux", 8, 2)
    net.outputs = {"logits": (3,), "aux": (2, 3, 3)}
    save(net, here / "aux.onnx")
    line = refused(*command(model="aux.onnx", mode=mode))
    assert "'spoilt' are NaN or infinite" in line


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_output_that_is_infinite(here: Path, mode: str) -> None:
    net = tiny_net()
    net.op("Sub", "logits logits", "zero")
    net.op("Log", "zero", "never")
    net.outputs = {"logits": (3,), "never": (3,)}
    save(net, here / "inf.onnx")
    line = refused(*command(model="inf.onnx", mode=mode))
    assert "'never'" in line
    assert "cannot be verified" in line


def test_eval_that_lacks_a_class(here: Path) -> None:
    """Folders 5..9 are still digits 5..9; alternatively the folder is refused."""
    calib = digits(here / "calib")
    folder = digits(here / "eval", 10, DIGITS_TEST)
    for label in "01234":
        shutil.rmtree(folder / label)
    result = run(*command(model=LENET, calib=calib, eval=folder, sparsity=0.1), "--json")
    if result.exit_code == 1:
        assert "class" in result.stderr
    else:
        assert '"accuracy": 0.0' not in result.stdout


# -- sparsity --------------------------------------------------------------------------------

BEST = r"best achievable is (0\.\d+)"


@pytest.mark.parametrize("mode", ANY_MODEL)
@pytest.mark.parametrize("name", ["tiny", "digits_mobilenet", "digits_lenet300"])
def test_best_achievable_is_achievable(here: Path, name: str, mode: str) -> None:
    common: dict[str, Any] = {"mode": mode}
    if name != "tiny":
        calib = images(here / "calib", *map(str, range(10)))
        common |= {"model": ROOT / "models" / f"{name}.onnx", "calib": calib}
    line = refused(*command(**common, sparsity=0.99999))
    found = re.search(BEST, line)
    assert found, line
    assert "0.99999" in line
    best = float(found[1])
    for asked in (best, best - 0.01):
        report = report_of(*command(**common, sparsity=asked, force=True))
        assert report["sparsity"]["achieved"] >= asked
    assert report["after"]["nonzero_weights"] > 0
    os.unlink("out.onnx")
    refused(*command(**common, sparsity=best + 0.0002))


def test_excluded_weights_count_against_the_best() -> None:
    args = command(mode="weights", sparsity=0.9, exclude="*conv2")
    found = re.search(BEST, refused(*args))
    assert found
    assert float(found[1]) < 0.5
    report = report_of(*command(mode="weights", sparsity=found[1], exclude="*conv2"))
    (layer,) = [x for x in report["layers"] if x["node"] == "/conv2"]
    assert layer["nonzero_after"] == layer["nonzero_before"]


@pytest.mark.parametrize("value", ["nan", "1e-400", "0.0", "1.0", "inf", "-inf"])
def test_odd_sparsity(here: Path, value: str) -> None:
    before = tree(here)
    result = run(*command(sparsity=value))
    assert result.exit_code in (1, 2)
    assert "parsity" in result.stderr
    assert tree(here) == before


def test_huge_settings() -> None:
    done(*command(align=10**12, batch_size=10**12, seed=10**30))


def test_huge_threads() -> None:
    assert run(*command(threads=10**12)).exit_code in (1, 2)


# -- where to write --------------------------------------------------------------------------


def test_output_exists() -> None:
    Path("out.onnx").write_text("old")
    line = refused(*command())
    assert "out.onnx" in line
    assert "--force" in line


def test_default_output_exists() -> None:
    Path("tiny.pruned.onnx").write_text("old")
    assert "--force" in refused(*command(out=None))


@pytest.mark.parametrize("option", ["out", "report"])
@pytest.mark.parametrize("source", ["tiny.onnx", "data.npz", "eval.npz"])
@pytest.mark.parametrize("how", ["name", "path", "symlink", "hard link", "linked folder"])
def test_inputs_are_never_overwritten(here: Path, option: str, source: str, how: str) -> None:
    tiny_samples(here / "eval.npz")
    target = Path(source)
    if how == "path":
        target = here / "." / ".." / here.name / source
    elif how == "symlink":
        target = Path("link")
        target.symlink_to(source)
    elif how == "hard link":
        target = Path("link")
        target.hardlink_to(source)
    elif how == "linked folder":
        Path("folder").symlink_to(here)
        target = Path("folder") / source
    for force in (None, True):
        line = refused(*command(eval="eval.npz", force=force), f"--{option}", target)
        assert "input" in line


def test_model_given_as_a_link_is_not_overwritten() -> None:
    Path("link.onnx").symlink_to("tiny.onnx")
    refused(*command(model="link.onnx", out="tiny.onnx", force=True))


@pytest.mark.parametrize("option", ["out", "report"])
def test_external_data_is_not_overwritten(here: Path, option: str) -> None:
    model = here / "ext.onnx"
    save(tiny_net(), model, save_as_external_data=True, location="ext.bin", size_threshold=0)
    refused(*command(model=model, force=True), f"--{option}", "ext.bin")


@pytest.mark.parametrize("option", ["out", "report"])
def test_sample_is_not_overwritten(here: Path, option: str) -> None:
    calib = images(here / "calib", *map(str, range(10)))
    refused(*command(model=LENET, calib=calib, force=True), f"--{option}", "calib/3/4.png")


@pytest.mark.parametrize("option", ["out", "report"])
def test_target_is_a_folder(option: str) -> None:
    Path("folder").mkdir()
    assert "is a folder" in refused(*command(), f"--{option}", "folder", "--force")


@pytest.mark.parametrize("option", ["out", "report"])
def test_target_folder_is_missing(option: str) -> None:
    line = refused(*command(), f"--{option}", "gone/out.file")
    assert "folder gone does not exist" in line
    assert "does not exist" in refused(*command(), f"--{option}", "tiny.onnx/out.file")


@pytest.mark.parametrize("out", ["out.onnx", None])
def test_report_is_the_output(here: Path, out: str | None) -> None:
    report = out or "tiny.pruned.onnx"
    refused(*command(out=out, report=report))
    refused(*command(out=out, report=here / report, force=True))


def test_report_that_is_the_output_is_called_so() -> None:
    assert "input" not in refused(*command(report="out.onnx"))


@pytest.mark.parametrize("option", ["out", "report"])
def test_special_files_are_not_replaced(option: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("special")
        run(*command(force=True), f"--{option}", "special")
        assert stat.S_ISSOCK(Path("special").stat().st_mode)


LONG, LOOP = "n" * 300, "loop"


@pytest.mark.parametrize(
    ("option", "name"),
    [
        *((option, LONG) for option in ("model", "calib", "eval")),
        *((option, LONG) for option in ("out", "report")),
        *((option, LOOP) for option in ("model", "calib", "eval", "out", "report")),
    ],
)
def test_paths_that_cannot_be(option: str, name: str) -> None:
    Path("loop").symlink_to("loop")
    refused(*command(**{option: name}))


def test_name_as_long_as_allowed(here: Path) -> None:
    """The temporary file has a longer name: at worst one line, never a traceback."""
    name = "n" * (os.pathconf(here, "PC_NAME_MAX") - 5) + ".onnx"
    before = tree(here)
    result = run(*command(out=name))
    assert result.exit_code in (0, 1)
    assert tree(here).keys() - before.keys() <= {name}


# -- while writing ---------------------------------------------------------------------------


class FullFile(io.FileIO):
    """A file on a disk that is nearly full."""

    def write(self, content: Any) -> int:
        super().write(bytes(content)[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("old", [None, "an older file"])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_disk_full(monkeypatch: pytest.MonkeyPatch, where: str, old: str | None) -> None:
    if old:
        Path("out.onnx").write_text(old)
    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(os, "fdopen", FullFile)
        else:
            patch.setattr(os, where, no_space)
        line = refused(*command(force=True))
    assert "out.onnx: cannot be written: No space left on device" in line


def test_disk_full_for_the_report(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is complete then, and the older report is still there."""
    Path("report.json").write_text("an older report")
    real = os.replace

    def replace(source: str, target: Path) -> None:
        no_space() if target.suffix == ".json" else real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        result = run(*command(report="report.json"))
    assert result.exit_code == 1
    assert "report.json: cannot be written" in result.stderr
    assert Path("report.json").read_text() == "an older report"
    assert sorted(tree(here)) == sorted(["data.npz", "out.onnx", "report.json", "tiny.onnx"])


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from onnxprune.cli import commands as cli
from onnxprune.verbs import prune
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
cli.main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs POSIX limits")
def test_write_that_the_system_cuts_short(here: Path) -> None:
    """A file size limit makes the kernel write a part and fail, as a full disk does."""
    Path("out.onnx").write_text("an older file")
    before = tree(here)
    process = python("-B", "-c", LIMITED, *command(force=True))
    assert process.returncode == 1
    lines = process.stderr.decode().splitlines()
    assert [line.startswith("onnxprune: warning") for line in lines[:-1]] == [True] * len(lines[1:])
    assert lines[-1].startswith("onnxprune: error: out.onnx: cannot be written")
    assert tree(here) == before


KILLED = """
import os, signal, sys
from onnxprune.cli import commands as cli
from onnxprune.verbs import prune
setattr(os, sys.argv.pop(1), lambda *_: os.kill(os.getpid(), signal.SIGKILL))
cli.main()
"""


@pytest.mark.parametrize(("place", "old"), [("fsync", "old"), ("replace", "old"), ("fsync", None)])
def test_killed_while_writing(here: Path, place: str, old: str | None) -> None:
    if old:
        Path("out.onnx").write_text(old)
    before = tree(here)
    process = python("-c", KILLED, place, *command(force=True))
    assert process.returncode == -signal.SIGKILL
    after = tree(here)
    assert {name: after.get(name) for name in before} == before
    assert ("out.onnx" in after) == bool(old)
    left = after.keys() - before.keys()
    assert all(name.startswith(".onnxprune-") for name in left)


def test_interrupted_while_writing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    before = tree(here)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        result = run(*command())
    assert result.exit_code == 1
    assert tree(here) == before


def test_file_that_reads_back_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.truncate(handle, 100))
        line = refused(*command(), prefix="onnxprune: internal error: ")
    assert "reads back differently" in line


# -- a wrong rewrite -------------------------------------------------------------------------


def wrong_by(change: Callable[[Any], Any]) -> Callable[..., Model]:
    """Return a ``rewrite`` whose first weight is changed."""
    right = execute.rewrite

    def rewrite(*args: Any) -> Model:
        model = right(*args)
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return Model(proto, model.sha256)

    return rewrite


WRONG: dict[str, Callable[[Any], Any]] = {
    "one channel": lambda w: np.concatenate([w[:1] * 1.5, w[1:]]),
    "order": lambda w: w[::-1].copy(),
    "nan": lambda w: w * np.float32(np.nan),
}


@pytest.mark.parametrize("mode", ANY_MODEL)
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_rewrite_is_not_written(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], mode: str
) -> None:
    monkeypatch.setattr(execute, "rewrite", wrong_by(change))
    line = refused(*command(mode=mode), prefix="onnxprune: internal error: ")
    assert "differs" in line
    assert "nothing was written" in line


def test_rewrite_that_removes_too_little_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that ignores the plan computes something else, or misses the request."""
    monkeypatch.setattr(execute, "rewrite", lambda cut: cut.model)
    refused(*command(), prefix="onnxprune: internal error: ")


# -- paths -----------------------------------------------------------------------------------


BAD_PATHS = {
    "long": "x" * 300,
    "longer": "x" * 5000,
    "deep": "/".join(["a" * 100] * 60),
    "empty": "",
    "dot": ".",
    "loop": "loop",
    "below a file": "tiny.onnx/x",
    "no UTF-8": "a\udcff.onnx/x",
}
PATH_OF: dict[str, list[str]] = {
    "model": ["prune", "@", "--random-inputs", "--sparsity", "0.5"],
    "out": ["prune", "tiny.onnx", "--random-inputs", "--sparsity", "0.5", "-o", "@"],
    "calib": ["prune", "tiny.onnx", "--calib", "@", "--sparsity", "0.5"],
    "report": ["prune", "tiny.onnx", "--random-inputs", "--sparsity", "0.5", "--report", "@"],
    "plan of apply": ["apply", "tiny.onnx", "@", "--calib", "data.npz"],
    "plan": ["plan", "tiny.onnx", "--random-inputs", "--sparsity", "0.5", "-o", "@"],
    "plan of a model": ["plan", "@", "--random-inputs", "--sparsity", "0.5"],
    "inspect": ["inspect", "@"],
    "evaluate": ["evaluate", "@", "--calib", "data.npz"],
    "bench": ["bench", "@"],
    "sweep": ["sweep", "tiny.onnx", "--calib", "data.npz", "-o", "@"],
}


@pytest.mark.parametrize("path", BAD_PATHS.values(), ids=BAD_PATHS)
@pytest.mark.parametrize("args", PATH_OF.values(), ids=PATH_OF)
def test_paths_that_lead_nowhere(args: list[str], path: str) -> None:
    Path("loop").symlink_to("loop")
    line = refused(*(path if arg == "@" else arg for arg in args))
    assert len(line) < 1000


def test_a_file_too_large_for_a_model(here: Path) -> None:
    (here / "large.onnx").touch()
    os.truncate(here / "large.onnx", 2**31 + 1)
    assert "export it with external data" in refused(*command(model="large.onnx"))


def test_python_may_give_a_path_with_a_nul() -> None:
    with pytest.raises(OnnxpruneError, match="cannot be read: embedded null byte"):
        onnxprune.inspect("a\0b")
