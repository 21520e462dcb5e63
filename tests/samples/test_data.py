"""Folders of images and npz files: what is fed, what is streamed, what is refused."""

from __future__ import annotations

import io
import itertools
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxprune.errors import CalibrationError
from onnxprune.model.model import TensorSpec
from onnxprune.samples import images
from onnxprune.samples import npz as arrays
from onnxprune.samples.dataset import Scaling
from onnxprune.samples.holdout import split
from onnxprune.samples.images import _decode
from onnxprune.samples.sources import open_dataset

DIGITS = Path(__file__).parents[2] / "calibration" / "digits"


def spec(dtype, *shape, name="input"):
    return TensorSpec(name, np.dtype(dtype), shape)


GREY = spec(np.float32, "N", 1, 4, 4)
RGB = spec(np.float32, "N", 3, 4, 4)


def picture(path, pixels=0, mode="L", size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, np.ndarray):
        Image.fromarray(pixels).save(path)
    else:
        Image.new(mode, size, pixels).save(path)
    return path


def folder(root, **classes):
    """One 4x4 grey image for each value, with that value in all pixels."""
    for name, values in classes.items():
        (root / name).mkdir(parents=True)
        for k, value in enumerate(values):
            picture(root / name / f"{k:03}.png", value)
    return root


def npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def read(dataset, rows=None, batch_size=4):
    batches = list(dataset.batches(rows, batch_size))
    return {
        name: np.concatenate([b.feeds[name] for b in batches]) for name in batches[0].feeds
    }, np.concatenate([b.labels for b in batches])


def refused(path, inputs, *words, mean=None, std=None):
    """Open and read everything; the error is one line with the path and these words."""
    with pytest.raises(CalibrationError) as caught:
        list(open_dataset(path, inputs, Scaling.of(mean, std)).batches(None, 4))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.count(str(path) + ":") == 1
    for word in words:
        assert word in message
    return message


# --- Folders ----------------------------------------------------------------------------


def test_digits():
    dataset = open_dataset(DIGITS, [spec(np.float32, 32, 1, 8, 8)])
    assert dataset.class_names == tuple("0123456789")
    assert dataset.labels.shape == (1200,)
    assert dataset.labels.dtype == np.int64
    rows = np.array([1199, 0, 600])
    feeds, labels = read(dataset, rows, 2)
    files = [f for c in range(10) for f in sorted((DIGITS / str(c)).iterdir())]
    for image, label, row in zip(feeds["input"], labels, sorted(rows), strict=True):
        assert label == int(files[row].parent.name)
        expected = np.asarray(Image.open(files[row]), np.float32)[None] / 255
        np.testing.assert_array_equal(image, expected)
    assert dataset.skipped == []


def test_batches_fill_up_and_labels_follow(tmp_path):
    dataset = open_dataset(folder(tmp_path, a=[0, 51, 102], b=[153, 255]), [GREY])
    batches = list(dataset.batches(None, 2))
    assert [len(b) for b in batches] == [2, 2, 1]
    assert [b.labels.tolist() for b in batches] == [[0, 0], [0, 1], [1]]
    assert all(b.labels.dtype == np.int64 for b in batches)
    assert all(b.feeds["input"].flags.c_contiguous for b in batches)
    values = np.concatenate([b.feeds["input"] for b in batches])[:, 0, 0, 0]
    np.testing.assert_allclose(values, [0, 0.2, 0.4, 0.6, 1])


def test_classes_sort_by_name_or_by_number(tmp_path):
    names = {"10": [0], "2": [0], "0": [0]}
    numeric = open_dataset(folder(tmp_path / "numeric", **names), [GREY])
    assert numeric.class_names == ("0", "2", "10")
    mixed = open_dataset(folder(tmp_path / "mixed", **names, x=[0]), [GREY])
    assert mixed.class_names == ("0", "10", "2", "x")


def test_empty_class_folder_counts(tmp_path):
    dataset = open_dataset(folder(tmp_path, a=[0], b=[], c=[0]), [GREY])
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.labels.tolist() == [0, 2]


def test_found_recursively_by_suffix_but_not_hidden(tmp_path):
    folder(tmp_path, a=[], b=[0])
    suffixes = ["png", "JPG", "jpeg", "bmp", "gif", "webp", "tif", "TIFF", "ppm", "pgm"]
    for suffix in suffixes:
        picture(tmp_path / "a" / "deep" / f"image.{suffix}")
    picture(tmp_path / "a" / ".hidden.png")
    picture(tmp_path / "a" / ".cache" / "image.png")
    picture(tmp_path / ".git" / "image.png")
    picture(tmp_path / "preview.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    dataset = open_dataset(tmp_path, [GREY])
    assert dataset.class_names == ("a", "b")
    assert dataset.labels.tolist() == [0] * len(suffixes) + [1]
    assert len(read(dataset)[1]) == len(suffixes) + 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_layouts_and_dtypes(tmp_path, dtype):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    for name in "ab":
        picture(tmp_path / name / "image.png", pixels)
    scale = 1 if dtype is np.uint8 else 255
    for shape, axes in (("N", 3, 4, 4), (2, 0, 1)), (("N", 4, 4, 3), (0, 1, 2)):
        feeds, _ = read(open_dataset(tmp_path, [spec(dtype, *shape)]))
        assert feeds["input"].dtype == dtype
        expected = (pixels / scale).transpose(axes)
        tolerance = 1e-15 if dtype is np.float64 else 1e-3
        np.testing.assert_allclose(feeds["input"][0], expected, tolerance)


def test_nchw_wins_where_both_fit(tmp_path):
    feeds, _ = read(open_dataset(folder(tmp_path, a=[0], b=[0]), [spec("f4", "N", 3, 4, 3)]))
    assert feeds["input"].shape == (2, 3, 4, 3)


@pytest.mark.parametrize("shape", [("N", 3, 4, 4), ("N", 4, 4, 3)])
def test_mean_and_std_are_per_channel(tmp_path, shape):
    for name in "ab":
        picture(tmp_path / name / "image.png", (255, 0, 51), "RGB")
    dataset = open_dataset(
        tmp_path, [spec(np.float32, *shape)], Scaling((0.5, 0.25, 0.0), (0.5, 0.5, 2.0))
    )
    image = read(dataset)[0]["input"][0]
    pixel = image[:, 2, 1] if shape[1] == 3 else image[2, 1]
    np.testing.assert_allclose(pixel, [1, -0.5, 0.1], 1e-6)
    only_mean = read(open_dataset(tmp_path, [RGB], Scaling((1, 1, 1))))[0]["input"]
    np.testing.assert_allclose(only_mean[0, :, 0, 0], [0, -1, -0.8], 1e-6)


def test_modes_become_grey_or_rgb(tmp_path):
    picture(tmp_path / "a" / "grey.png", 200, "L")
    picture(tmp_path / "a" / "rgba.png", (200, 200, 200, 7), "RGBA")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 200, 200])
    (tmp_path / "b").mkdir()
    palette.save(tmp_path / "b" / "palette.png", transparency=b"\x00\x10")
    for channels in (1, 3):
        feeds, _ = read(open_dataset(tmp_path, [spec(np.uint8, "N", channels, 4, 4)]))
        assert feeds["input"].shape == (3, channels, 4, 4)
        assert (feeds["input"] == 200).all()


def test_16_bit_images_are_scaled_not_clipped(tmp_path):
    deep = np.full((4, 4), 0x8040, np.uint16)
    picture(tmp_path / "a" / "deep.png", deep)
    (tmp_path / "b").mkdir()
    header = b"P5 4 4 65535\n"
    (tmp_path / "b" / "deep.pgm").write_bytes(header + deep.astype(">u2").tobytes())
    feeds, _ = read(open_dataset(tmp_path, [spec(np.uint8, "N", 1, 4, 4)]))
    assert (feeds["input"] == 0x80).all()


def test_float_images_are_unreadable(tmp_path):
    folder(tmp_path, a=[0], b=[])
    picture(tmp_path / "b" / "deep.tif", np.full((4, 4), 0.5, np.float32))
    refused(tmp_path, [GREY], "1 of 2", "deep.tif", "more than 16 bits")


def test_resized_bilinear_only_if_needed(tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    picture(tmp_path / "a" / "big.png", big)
    picture(tmp_path / "b" / "fits.png", big[:3, :5])
    feeds, _ = read(open_dataset(tmp_path, [spec(np.uint8, "N", 1, 3, 5)]))
    expected = Image.fromarray(big).resize((5, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(feeds["input"][0, 0], np.asarray(expected))
    np.testing.assert_array_equal(feeds["input"][1, 0], big[:3, :5])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(("H", "W"), (6, 5)), ((0, -1), (6, 5)), ((3, "W"), (3, 5)), (("", 2), (6, 2))],
)
def test_dynamic_size_is_that_of_the_first_image(tmp_path, sizes, expected):
    picture(tmp_path / "a" / "first.png", size=(5, 6))
    picture(tmp_path / "b" / "other.png", size=(9, 8))
    dataset = open_dataset(tmp_path, [spec(np.uint8, "N", 1, *sizes)])
    feeds, _ = read(dataset, np.array([1]))
    assert feeds["input"].shape == (1, 1, *expected)


def damage(path, how):
    if how == "bomb":
        picture(path, size=(12, 12))
    elif how == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
        picture(path, noise)
        path.write_bytes(path.read_bytes()[:900])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes({"text": b"not an image", "zero": b""}[how])


@pytest.mark.parametrize("how", ["text", "zero", "truncated", "gone", "bomb"])
def test_unreadable_images_are_skipped_once(tmp_path, how, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns from here
    folder(tmp_path, a=range(10), b=range(10, 20))
    dataset = open_dataset(tmp_path, [spec(np.uint8, "N", 1, 4, 4)])
    bad = tmp_path / "a" / "003.png"
    damage(bad, how)
    for _ in range(2):
        batches = list(dataset.batches(None, 5))
        assert [len(b) for b in batches] == [5, 5, 5, 4]
        values = np.concatenate([b.feeds["input"][:, 0, 0, 0] for b in batches])
        assert values.tolist() == [k for k in range(20) if k != 3]
        labels = np.concatenate([b.labels for b in batches])
        assert labels.tolist() == [0] * 9 + [1] * 10
        assert len(dataset.skipped) == 1
    assert re.fullmatch(re.escape(f"{bad}: ") + r"\S.*", dataset.skipped[0])
    assert len(dataset.labels) == 20


def test_huge_bombs_are_unreadable_too(tmp_path, monkeypatch):
    folder(tmp_path, a=[0] * 10, b=[0])
    dataset = open_dataset(tmp_path, [GREY])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # Pillow raises from twice this
    with pytest.raises(CalibrationError, match="exceeds limit"):
        next(dataset.batches(None, 1))


def test_first_image_may_be_unreadable(tmp_path):
    folder(tmp_path, a=range(10), b=range(10))
    damage(tmp_path / "a" / "000.png", "text")
    dataset = open_dataset(tmp_path, [spec(np.uint8, "N", 1, "H", "W")])
    assert len(dataset.skipped) == 1
    feeds, _ = read(dataset)
    assert feeds["input"].shape == (19, 1, 4, 4)
    assert len(dataset.skipped) == 1


def test_too_many_unreadable(tmp_path):
    folder(tmp_path, a=range(10), b=range(10))
    for k in (1, 4):
        damage(tmp_path / "a" / f"{k:03}.png", "text")
    dataset = open_dataset(tmp_path, [GREY])
    list(dataset.batches(None, 4))  # exactly a tenth
    damage(tmp_path / "b" / "007.png", "text")
    stream = dataset.batches(None, 1)
    assert sum(1 for _ in itertools.islice(stream, 15)) == 15
    with pytest.raises(CalibrationError, match=r"3 of 20 images .* 10%.*a/001\.png"):
        next(stream)
    damage(tmp_path / "a" / "000.png", "text")
    refused(tmp_path, [spec("f4", "N", 1, "H", "W")], "3 of 20", "a/000.png")


def test_images_are_decoded_lazily(tmp_path, monkeypatch):
    decoded = []
    decode = _decode
    monkeypatch.setattr(images, "_decode", lambda *a: decoded.append(a[0].name) or decode(*a))
    dataset = open_dataset(folder(tmp_path, a=range(6), b=range(6)), [GREY])
    assert decoded == []
    next(dataset.batches(np.array([9, 2, 4]), 2))
    assert decoded == ["002.png", "004.png"]


def test_folder_errors(tmp_path):
    refused(tmp_path / "none", [GREY], "no such file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", [GREY], "empty", "folder of images for each class")
    refused(folder(tmp_path / "hollow", a=[], b=[]), [GREY], "empty")
    picture(tmp_path / "flat" / "image.png")
    refused(tmp_path / "flat", [GREY], "put each class in its own folder")
    refused(folder(tmp_path / "one", a=[0, 0], b=[]), [GREY], "only one class", "'a'")


def test_unlistable_class_folder(tmp_path, monkeypatch):
    folder(tmp_path, a=[0], b=[0])
    listing = Path.iterdir

    def iterdir(self):
        if self.name == "b":
            raise PermissionError(13, "Permission denied", str(self))
        return listing(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    refused(tmp_path, [GREY], "cannot be read", "Permission denied", "b'")


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [GREY, spec(np.float32, "N", 1, 4, 4, name="other")],
        [spec(np.int64, "N", 1, 4, 4)],
        [spec(object, "N", 1, 4, 4)],
        [spec(np.float32, "N", 16)],
        [spec(np.float32)],
        [spec(np.float32, "N", 2, 4, 4)],
        [spec(np.float32, "N", "C", 4, 4)],
        [spec(np.float32, "N", 1, 4, 4, 4)],
    ],
)
def test_models_not_fit_for_images(tmp_path, inputs):
    message = refused(folder(tmp_path, a=[0], b=[0]), inputs, "images need one", "use an .npz")
    for one in inputs:
        assert f"'{one.name}' {one.dtype} [N" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [0.5]}, ["mean is [0.5]", "expected 3"]),
        ({"std": [1, 1, 1, 1]}, ["std is [1.0, 1.0, 1.0, 1.0]", "expected 3"]),
        ({"std": [1, 0, 1]}, ["std is [1.0, 0.0, 1.0]", "no 0 in std"]),
        ({"mean": [0, float("nan"), 0]}, ["mean is", "finite"]),
        ({"std": [1, float("inf"), 1]}, ["std is", "finite"]),
    ],
)
def test_bad_mean_or_std(tmp_path, options, words):
    refused(folder(tmp_path, a=[0], b=[0]), [RGB], *words, **options)


def test_mean_and_std_need_images_and_floats(tmp_path):
    classes = folder(tmp_path / "images", a=[0], b=[0])
    raw = spec(np.uint8, "N", 1, 4, 4)
    arrays = npz(tmp_path / "a.npz", x=np.zeros((2, 1, 4, 4), np.float32), y=[0, 1])
    for option in ("mean", "std"):
        refused(classes, [raw], "mean and std are for", **{option: [1.0]})
        refused(arrays, [GREY], "mean and std are for", **{option: [1.0]})


# --- npz --------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8", "i4", "?"])
def test_streaming_equals_load(tmp_path, compressed, dtype, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 50)  # so that gaps take several reads
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, (57, 3, 5)).astype(dtype)
    labels = rng.integers(0, 4, 57)
    path = npz(tmp_path / "a.npz", compressed, a=values, mask=labels[:, None] > 1, y=labels)
    inputs = [spec(dtype, "N", 3, "W", name="a"), spec("?", "N", 1, name="mask")]
    dataset = open_dataset(path, inputs)
    loaded = np.load(path)
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.skipped == []
    np.testing.assert_array_equal(dataset.labels, labels)
    for size in (1, 2, 20, 57):
        rows = rng.choice(57, size, replace=False)
        feeds, got = read(dataset, rows, 6)
        assert list(feeds) == ["a", "mask"]
        for name, array in feeds.items():
            assert array.dtype == loaded[name].dtype
            np.testing.assert_array_equal(array, loaded[name][np.sort(rows)])
        np.testing.assert_array_equal(got, labels[np.sort(rows)])
    np.testing.assert_array_equal(read(dataset)[0]["a"], values)


def test_batch_sizes_and_row_choices(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.arange(10.0), y=np.arange(10) % 2)
    dataset = open_dataset(path, [spec(np.float64, 7)])
    assert [len(b) for b in dataset.batches(None, 4)] == [4, 4, 2]
    assert read(dataset, np.array([5, 1, 5]))[0]["input"].tolist() == [1, 5]
    assert list(dataset.batches(np.array([], np.int64), 4)) == []
    for rows in ([10], [-1]):
        with pytest.raises(IndexError):
            next(dataset.batches(np.array(rows), 4))
    with pytest.raises(ValueError, match="batch_size"):
        next(dataset.batches(None, 0))


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_stays_flat(tmp_path, compressed):
    path = npz(tmp_path / "a.npz", y=np.arange(60) % 3)
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    row = np.zeros(1 << 18, np.float32)
    with (
        zipfile.ZipFile(path, "a", method, compresslevel=1) as archive,
        archive.open("x.npy", "w") as member,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (60, row.size)}
        np.lib.format.write_array_header_1_0(member, header)
        for k in range(60):  # 60 MiB
            row[0] = k
            member.write(row.tobytes())
    rows = np.setdiff1d(np.arange(60), np.arange(10, 40))
    tracemalloc.start()
    try:
        dataset = open_dataset(path, [spec(np.float32, "N", row.size)])
        seen = [int(b.feeds["input"][0, 0]) for b in dataset.batches(rows, 1)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == rows.tolist()
    assert peak < 8 << 20


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_header_versions(tmp_path, version):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = npz(tmp_path / "a.npz", y=[0, 1, 1])
    member = io.BytesIO()
    np.lib.format.write_array(member, values, version=version if version < (3, 0) else (2, 0))
    raw = bytearray(member.getvalue())
    raw[6] = version[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", bytes(raw))
    np.testing.assert_array_equal(
        read(open_dataset(path, [spec("f4", "N", 2)]))[0]["input"], values
    )


def test_names_of_arrays(tmp_path):
    one, two = np.zeros((2, 1), np.float32), np.ones((2, 1), np.float32)
    both = npz(tmp_path / "both.npz", x=one, input=two, y=[0, 1])
    assert read(open_dataset(both, [spec("f4", "N", 1)]))[0]["input"].tolist() == [[1], [1]]
    only_x = npz(tmp_path / "x.npz", x=one, y=[0, 1])
    odd = [spec("f4", "N", 1, name="/in:0")]
    assert read(open_dataset(only_x, odd))[0]["/in:0"].tolist() == [[0], [0]]
    assert list(read(open_dataset(only_x, [spec("f4", "N", 1, name="y")]))[0]) == ["y"]
    pair = [spec("f4", "N", 1, name="x"), spec("f4", "N", 1, name="z")]
    refused(only_x, pair, "no array ['z']", "found ['x', 'y']")
    refused(npz(tmp_path / "o.npz", other=one, y=[0, 1]), odd, "no array", "['other', 'y']")
    refused(npz(tmp_path / "no_y.npz", x=one), odd, "no array ['y']", "found ['x']")
    refused(npz(tmp_path / "in_y.npz", y=[0, 1]), [spec("i8", "N", name="y")], "no array")


@pytest.mark.parametrize("source", ["f2", "f4", "f8", ">f4", ">f8"])
@pytest.mark.parametrize("target", ["f2", "f4", "f8"])
def test_floats_are_cast_to_float_inputs(tmp_path, source, target):
    values = np.array([[0.5], [-3]], source)
    feeds, _ = read(open_dataset(npz(tmp_path / "a.npz", x=values, y=[0, 1]),
                                 [spec(target, "N", 1)]))  # fmt: skip
    assert feeds["input"].dtype == np.dtype(target)
    assert feeds["input"].tolist() == [[0.5], [-3]]


def test_other_byte_order_of_integers(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.array([[1], [500]], ">i4"), y=np.array([0, 1], ">i2"))
    dataset = open_dataset(path, [spec("i4", "N", 1)])
    assert read(dataset)[0]["input"].tolist() == [[1], [500]]
    assert dataset.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("got", "expected", "advice"),
    [
        ("uint8", "float32", "divide by 255 yourself, arrays are fed as they are"),
        ("int64", "float32", "convert yourself"),
        ("float32", "uint8", "convert yourself"),
        ("int32", "int64", "convert yourself"),
        ("bool", "uint8", "convert yourself"),
        ("<U3", "float32", "convert yourself"),
    ],
)
def test_wrong_dtype(tmp_path, got, expected, advice):
    path = npz(tmp_path / "a.npz", x=np.zeros((2, 1), got), y=[0, 1])
    refused(path, [spec(expected, "N", 1)], f"'x' is {got}, expected {expected}", advice)


@pytest.mark.parametrize(
    ("got", "declared", "text"),
    [
        ((2, 16), ("N", 1, 4, 4), "[N, 1, 4, 4]"),
        ((2, 1, 5, 4), ("N", 1, 4, "W"), "[N, 1, 4, W]"),
        ((2, 4, 4), (8, 1, 4, ""), "[N, 1, 4, ?]"),
        ((2, 1), ("N",), "[N]"),
    ],
)
def test_wrong_shape(tmp_path, got, declared, text):
    path = npz(tmp_path / "a.npz", x=np.zeros(got, np.float32), y=[0, 1])
    refused(path, [spec("f4", *declared)], f"shape {list(got)}, expected {text}")


def test_scalar_input(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.float32(1), y=[0, 1])
    refused(path, [spec("f4")], "'x' has shape []")


def test_counts(tmp_path):
    x, inputs = np.zeros((3, 1), np.float32), [spec("f4", "N", 1)]
    refused(npz(tmp_path / "a.npz", x=x, y=[0, 1]), inputs, "'y': 2, 'x': 3", "differ")
    refused(npz(tmp_path / "b.npz", x=x, y=0), inputs, "'y': 0, 'x': 3", "differ")
    empty = npz(tmp_path / "c.npz", x=x[:0], y=np.array([], np.int64))
    refused(empty, inputs, "empty")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 1.5]), ["label 1.5 in row 1", "class numbers from 0"]),
        (np.array([0, -1]), ["label -1 in row 1"]),
        (np.array([0, 1 << 40]), [f"label {1 << 40} in row 1"]),
        (np.array([0, 1e300]), ["label 1e+300 in row 1"]),
        (np.array([0, np.nan]), ["'y' has NaN", "row 1"]),
        (np.array(["a", "b"]), ["'y' is <U1 [2]", "expected integers [N]"]),
        (np.eye(2, dtype=np.int64), ["'y' is int64 [2, 2]", "argmax"]),
        (np.zeros((2, 1, 1), np.int64), ["'y' is int64 [2, 1, 1]"]),
        (np.array([3, 3]), ["only one class", "'3'"]),
    ],
)
def test_bad_labels(tmp_path, labels, words):
    path = npz(tmp_path / "a.npz", x=np.zeros((2, 1), np.float32), y=labels)
    refused(path, [spec("f4", "N", 1)], *words)


@pytest.mark.parametrize("dtype", ["i8", "u1", "i2", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_labels_of_many_kinds(tmp_path, dtype, shape):
    labels = np.array([1, 0, 1]).astype(dtype).reshape(shape)
    path = npz(tmp_path / "a.npz", x=np.zeros((3, 1), np.float32), y=labels)
    dataset = open_dataset(path, [spec("f4", "N", 1)])
    assert dataset.labels.tolist() == [1, 0, 1]
    assert dataset.labels.dtype == np.int64
    assert dataset.class_names == ("0", "1")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_and_infinity(tmp_path, bad):
    values = np.zeros((9, 2, 2))
    values[7, 1, 0] = bad
    path = npz(tmp_path / "a.npz", x=values, y=np.arange(9) % 2)
    refused(path, [spec("f4", "N", 2, 2)], "'x' has NaN or infinity (as float32) in row 7")
    dataset = open_dataset(path, [spec("f4", "N", 2, 2)])
    assert len(list(dataset.batches(np.array([0, 6, 8]), 2))) == 2


@pytest.mark.parametrize("name", ["x", "y"])
def test_pickles_are_refused(tmp_path, name):
    arrays = {"x": np.zeros((2, 1), np.float32), "y": np.array([0, 1])}
    arrays[name] = arrays[name].astype(object)
    path = npz(tmp_path / "a.npz", **arrays)
    refused(path, [spec("f4", "N", 1)], f"'{name}'", "pickled arrays are refused")
    refused(path, [spec(object, "N", 1)], "")


def test_fortran_order_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.zeros((4, 3), np.float32, "F"), y=[0, 1, 0, 1])
    refused(path, [spec("f4", "N", 3)], "Fortran", "np.ascontiguousarray")


def test_not_a_zip(tmp_path):
    path = tmp_path / "a.npz"
    for content in (b"", b"not a zip", b"PK\x03\x04"):
        path.write_bytes(content)
        refused(path, [GREY], "cannot be read")
    other = tmp_path / "a.csv"
    other.write_text("0,1")
    refused(other, [GREY], "neither a folder of class folders with images nor an .npz")


def replaced(path, name, change):
    """Rewrite a member of an npz, with a checksum that fits."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


@pytest.mark.parametrize("name", ["x", "y"])
def test_truncated_or_damaged_members(tmp_path, name):
    def fresh(change):
        path = npz(tmp_path / "a.npz", x=np.zeros((2, 9), np.float32), y=[0, 1])
        return replaced(path, f"{name}.npy", change)

    inputs = [spec("f4", "N", 9)]
    refused(fresh(lambda raw: raw[:-1]), inputs, f"'{name}' is truncated")
    refused(fresh(lambda raw: raw[:40]), inputs, f"'{name}' has a damaged header")
    refused(fresh(lambda _: b""), inputs, f"'{name}' has a damaged header")
    refused(fresh(lambda raw: b"x" + raw[1:]), inputs, f"'{name}' has a damaged header")
    # The blanks that pad the header make room for the longer shape.
    refused(
        fresh(lambda raw: raw.replace(b"(2,", b"(-2,").replace(b"  ", b" ", 1)),
        inputs,
        f"'{name}' is truncated",
    )
    refused(
        fresh(lambda raw: raw.replace(b"(2,", b"(99,").replace(b"  ", b" ", 1)),
        inputs,
        f"'{name}' is truncated",
    )


def test_truncated_file(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.zeros((20, 9), np.float32), y=np.arange(20) % 2)
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, [spec("f4", "N", 9)], "cannot be read")


def test_damage_found_while_streaming(tmp_path):
    values = np.random.default_rng(0).random((200, 50), np.float32)
    path = npz(tmp_path / "a.npz", compressed=True, x=values, y=np.arange(200) % 2)
    dataset = open_dataset(path, [spec("f4", "N", 50)])
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 500] = bytes(500)
    path.write_bytes(raw)
    with pytest.raises(CalibrationError, match=r"a\.npz: (cannot be read|array 'x' has NaN)"):
        list(dataset.batches(None, 10))
    path.unlink()
    with pytest.raises(CalibrationError, match="No such file"):
        list(dataset.batches(None, 10))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile, of duplicate names
def test_no_other_exception_whatever_the_bytes(tmp_path, compressed):
    path = npz(tmp_path / "a.npz", compressed, x=np.ones((6, 2), np.float32), y=[0, 1] * 3)
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(60):
        damaged = np.frombuffer(raw, np.uint8).copy()
        damaged[rng.integers(0, len(raw), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            list(open_dataset(path, [spec("f4", "N", 2)]).batches(None, 2))
        except CalibrationError:
            failed += 1
    assert failed > 20


def test_errors_of_the_caller_pass_through(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.zeros((2, 1), np.float32), y=[0, 1])
    with pytest.raises(OSError, match="mine"):  # noqa: PT012
        for _ in open_dataset(path, [spec("f4", "N", 1)]).batches(None, 1):
            raise OSError("mine")


# --- Splits and synthetic feeds ---------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.1, 0.1), (3, 1), (1,)])
def test_split_partitions(shares):
    labels = np.random.default_rng(1).choice([0, 1, 4], 203, p=[0.6, 0.35, 0.05])
    parts = split(labels, shares, 7)
    assert len(parts) == len(shares)
    assert sorted(np.concatenate(parts).tolist()) == list(range(203))
    for part, share in zip(parts, shares, strict=True):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        for label in (0, 1, 4):
            quota = (labels == label).sum() * share / sum(shares)
            assert abs((labels[part] == label).sum() - quota) < 1


def test_split_is_seeded_and_random():
    labels = np.arange(200) % 4
    first, again, other = (split(labels, (0.7, 0.3), seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert np.diff(first[1]).max() > 4  # not simply the last ones


@pytest.mark.parametrize(
    ("count", "shares", "sizes"),
    [
        (10, (0.5, 0.3, 0.2), [5, 3, 2]),
        (10, (0.55, 0.29, 0.16), [5, 3, 2]),
        (3, (0.9, 0.05, 0.05), [1, 1, 1]),
        (20, (0.98, 0.01, 0.01), [18, 1, 1]),
        (1, (0.2, 0.8), [0, 1]),
        (2, (0.9, 0.05, 0.05), [2, 0, 0]),
        (0, (0.5, 0.5), [0, 0]),
    ],
)
def test_split_uses_largest_remainders_but_leaves_none_out(count, shares, sizes):
    parts = split(np.full(count, 5, np.int64), shares, 0)
    assert [len(part) for part in parts] == sizes


@pytest.mark.parametrize(
    ("counts", "sizes", "fitted"),
    [
        ([1] * 100, [60, 20, 20], 60),
        ([2] * 100, [120, 40, 40], 100),
        ([3] * 100, [180, 60, 60], 100),
        ([4] * 10, [24, 8, 8], 10),
        ([50] * 10, [300, 100, 100], 10),
        ([100] + [1] * 20, [80, 20, 20], 21),
        ([2, 1], [2, 1, 0], 2),
        ([1, 1, 1], [1, 1, 1], 1),
        ([3], [1, 1, 1], 1),
    ],
)
def test_split_gives_rare_classes_to_the_first_part_first(counts, sizes, fitted):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = split(labels, (0.6, 0.2, 0.2), 0)
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert len(np.unique(labels[parts[0]])) == fitted


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(0, 99))
def test_split_wastes_nothing(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = split(labels, (0.6, 0.2, 0.2), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    if len(counts) <= 0.8 * len(labels):
        assert len(np.unique(labels[parts[0]])) == len(counts)
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert len(part) == pytest.approx(share * len(labels), abs=len(counts) / 2 + 2)


@pytest.mark.parametrize("shares", [(), (0.5, 0), (1, -1)])
def test_split_needs_positive_shares(shares):
    with pytest.raises(ValueError, match="positive"):
        split(np.arange(4), shares, 0)
