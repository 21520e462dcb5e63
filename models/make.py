"""Make the default models and images that onnxprune ships with.

Writes, from scikit-learn's bundled 8x8 handwritten digits (no download):

* ``calibration/digits/<label>/<index>.png``       1,200 training images,
* ``calibration/digits-test/<label>/<index>.png``  the other 597, for measuring accuracy,
* ``models/digits_lenet300.onnx``   fully connected 64-300-100-10,
* ``models/digits_resnet.onnx``     residual convolutional network,
* ``models/digits_mobilenet.onnx``  inverted residuals with squeeze-and-excite.

The images are 8-bit greyscale; ``<index>`` is the image's row in ``load_digits()``. Both
image folders are emptied first. The networks see only the training images, as read back from
the PNG files, and a fixed schedule decides when training stops; the test images serve only to
measure the finished ONNX files with onnxruntime, and the accuracies are printed.

Every model takes ``image``, float32 ``[batch, 1, 8, 8]`` with pixels divided by 255, and
returns ``logits``, float32 ``[batch, 10]``. The batch axis is dynamic.

Needs: ``pip install torch==2.13.0 scikit-learn onnx onnxruntime pillow``

Usage: ``python models/make.py`` (about a minute on one CPU core)
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

MODELS = Path(__file__).resolve().parent
CALIBRATION = MODELS.parent / "calibration"
TRAIN_FOLDER = CALIBRATION / "digits"
TEST_FOLDER = CALIBRATION / "digits-test"

SEED = 0
CLASSES = 10
TRAIN_IMAGES = 1200
BATCH = 50
OPSET = 17

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


# ---------------------------------------------------------------------------- images


def write_images() -> None:
    """Split the bundled digits by class and write both halves as PNG files."""
    data = load_digits()
    pixels = np.round(data.images * 255 / 16).astype(np.uint8)
    labels = data.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), train_size=TRAIN_IMAGES, stratify=labels, random_state=SEED
    )
    for folder, rows in ((TRAIN_FOLDER, train), (TEST_FOLDER, test)):
        shutil.rmtree(folder, ignore_errors=True)
        for label in range(CLASSES):
            (folder / str(label)).mkdir(parents=True)
        for row in rows:
            file = folder / str(labels[row]) / f"{row:04d}.png"
            Image.fromarray(pixels[row]).save(file, optimize=True)


def read_images(folder: Path) -> tuple[Images, Labels]:
    """Read a folder of class folders as pixels [n, 1, 8, 8] in 0..1 and labels [n]."""
    files = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float32) for file in files])
    labels = np.array([int(file.parent.name) for file in files], dtype=np.int64)
    return pixels[:, None] / np.float32(255), labels


# -------------------------------------------------------------------------- networks


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A 'same' convolution followed by batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


def lenet300() -> nn.Module:
    """Fully connected 64-300-100-10 with ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, CLASSES),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, projected by a 1x1 where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.second(functional.relu(self.first(x)))
        return functional.relu(y + self.shortcut(x))


def resnet() -> nn.Module:
    """Residual network: three stages of two basic blocks, widths 16, 32 and 64."""
    return nn.Sequential(
        conv_bn(1, 16, 3),
        nn.ReLU(),
        BasicBlock(16, 16, 1),
        BasicBlock(16, 16, 1),
        BasicBlock(16, 32, 2),
        BasicBlock(32, 32, 1),
        BasicBlock(32, 64, 2),
        BasicBlock(64, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gate."""
        gated: Tensor = x * self.gate(x)
        return gated


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-and-excite, project 1x1; add where shapes match."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = inputs == outputs and stride == 1
        self.body = nn.Sequential(
            conv_bn(inputs, hidden, 1),
            nn.Hardswish(),
            conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.Hardswish(),
            SqueezeExcite(hidden),
            conv_bn(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """Five inverted residual blocks between a 3x3 stem and a 1x1 head."""
    return nn.Sequential(
        conv_bn(1, 16, 3),
        nn.Hardswish(),
        InvertedResidual(16, 16, 2, 1),
        InvertedResidual(16, 24, 4, 2),
        InvertedResidual(24, 24, 4, 1),
        InvertedResidual(24, 40, 4, 2),
        InvertedResidual(40, 40, 4, 1),
        conv_bn(40, 128, 1),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    )


@dataclass(frozen=True)
class Recipe:
    """One model to make: its file, network and training settings."""

    file: str
    network: Callable[[], nn.Module]
    epochs: int
    rate: float
    decay: float


RECIPES = (
    Recipe("digits_lenet300.onnx", lenet300, epochs=120, rate=2e-3, decay=0.05),
    Recipe("digits_resnet.onnx", resnet, epochs=40, rate=4e-3, decay=0.05),
    Recipe("digits_mobilenet.onnx", mobilenet, epochs=60, rate=4e-3, decay=0.05),
)


# -------------------------------------------------------------------------- training


def shift(images: Tensor) -> Tensor:
    """Move each image by -1, 0 or 1 pixels along each axis (0 half of the time)."""
    count, _, height, width = images.shape
    steps = torch.tensor([-1, 0, 0, 1])
    down, right = steps[torch.randint(len(steps), (2, count))]
    rows = 1 + down[:, None] + torch.arange(height)
    columns = 1 + right[:, None] + torch.arange(width)
    padded = functional.pad(images, (1, 1, 1, 1))[:, 0]
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved[:, None]


def train(recipe: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """Train the recipe's network from seeded weights; return it in evaluation mode."""
    torch.manual_seed(SEED)
    network = recipe.network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    batches = -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.rate, total_steps=recipe.epochs * batches
    )
    for _ in range(recipe.epochs):
        for rows in torch.split(torch.randperm(len(labels)), BATCH):
            logits = network(shift(images[rows]))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


# ---------------------------------------------------------------------------- export


def export(network: nn.Module, file: Path) -> None:
    """Write the network as a checked ONNX file with a dynamic batch axis."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, 8, 8),),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    onnx.checker.check_model(str(file), full_check=True)


def accuracy(file: Path, images: Images, labels: Labels) -> float:
    """The share of images that the ONNX file classifies correctly in onnxruntime."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(["logits"], {"image": images})[0])
    return float((logits.argmax(axis=1) == labels).mean())


def parameters(file: Path) -> int:
    """The number of values in the ONNX file's initializers."""
    graph = onnx.load(str(file)).graph
    return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)


def main() -> None:
    """Write the images, then train, export and measure every model."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_images()
    images, labels = read_images(TRAIN_FOLDER)
    test_images, test_labels = read_images(TEST_FOLDER)
    print(f"{len(labels)} training images, {len(test_labels)} test images")
    for recipe in RECIPES:
        file = MODELS / recipe.file
        export(train(recipe, torch.from_numpy(images), torch.from_numpy(labels)), file)
        share = accuracy(file, test_images, test_labels)
        print(f"{recipe.file}: {parameters(file)} parameters, test accuracy {share:.2%}")


if __name__ == "__main__":
    main()
