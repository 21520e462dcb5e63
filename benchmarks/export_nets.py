"""Export small networks of many families with random weights, for coverage sweeps.

Usage: python benchmarks/export_nets.py FOLDER [NAME ...] [--dynamo]

Needs torch 2.13.0 and onnxscript; the families from transformers and scikit-learn are made
where these packages (and skl2onnx) are installed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {}


def net(*shape: int, vocabulary: int = 0) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a network and the shape of its input (tokens where it has a vocabulary)."""

    def example() -> tuple[Tensor, ...]:
        return (torch.randint(vocabulary, shape),) if vocabulary else (torch.randn(shape),)

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        NETS[cls.__name__.lower()] = (cls, example)
        return cls

    return register


def conv(a: int, b: int, k: int = 3, groups: int = 1, stride: int = 1) -> nn.Sequential:
    """A convolution with normalisation and activation."""
    layer = nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(b), nn.SiLU())


@net(2, 3, 32, 32)
class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 16), conv(16, 32), conv(32, 64)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)]
        )
        self.merge = nn.ModuleList([conv(64, 32), conv(32, 16)])
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        y = self.merge[0](torch.cat([self.up[0](c), b], 1))
        return self.head(self.merge[1](torch.cat([self.up[1](y), a], 1)))


@net(2, 3, 16, 16)
class PixelShuffle(nn.Module):
    """Super-resolution: depth to space, space to depth and a bilinear skip."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 32), conv(32, 64), nn.PixelUnshuffle(2), conv(256, 64))
        self.tail = nn.Sequential(nn.Conv2d(64, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.body(x))
        return y + F.interpolate(x, size=y.shape[2:], mode="bilinear", align_corners=False)


@net(2, 3, 64, 64)
class C2fNeck(nn.Module):
    """Detector parts: C2f blocks, SPPF, nearest upsampling and a decoupled head."""

    class C2f(nn.Module):
        """Chunks, bottlenecks and one concatenation of everything."""

        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.one, self.two = conv(a, b, 1), conv(2 * b, b, 1)
            self.blocks = nn.ModuleList(
                nn.Sequential(conv(b // 2, b // 2), conv(b // 2, b // 2)) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            parts = list(self.one(x).chunk(2, 1))
            for block in self.blocks:
                parts.append(parts[-1] + block(parts[-1]))
            return self.two(torch.cat(parts, 1))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.p3, self.p4 = (
            conv(3, 16, stride=2),
            conv(16, 32, stride=2),
            conv(32, 64, stride=2),
        )
        self.c3, self.c4, self.c5 = self.C2f(32, 32), self.C2f(64, 64), self.C2f(96, 32)
        self.sppf = conv(4 * 64, 64, 1)
        self.box, self.score = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.c3(self.p3(self.stem(x)))
        p4 = self.c4(self.p4(p3))
        pools = [p4]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        up = F.interpolate(self.sppf(torch.cat(pools, 1)), scale_factor=2.0, mode="nearest")
        y = self.c5(torch.cat([up, p3], 1))
        return torch.cat([self.box(y).flatten(2), self.score(y).sigmoid().flatten(2)], 1)


@net(2, 12, 8)
class LSTM(nn.Module):
    """Two bidirectional layers and a head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 24, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@net(2, 12, 8)
class GRU(nn.Module):
    """A convolution in front of a recurrent layer, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.rnn = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2)).relu().transpose(1, 2)
        return self.head(self.rnn(y)[0].mean(1))


@net(2, 10, 32)
class PackedAttention(nn.Module):
    """Packed query, key and value; heads by reshape and permute; LayerNorm; GELU MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


@net(2, 10, 32)
class TorchAttention(nn.Module):
    """torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


@net(2, 10, vocabulary=50)
class GroupedQueries(nn.Module):
    """Embedding, grouped-query attention, RMS normalisation, a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.out = nn.Linear(32, 32)
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)
        self.scale = nn.Parameter(torch.rand(32) + 0.5)
        self.head = nn.Linear(32, 5)

    def norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        b, t, _ = x.shape
        y = self.norm(x)
        q = self.q(y).reshape(b, t, 4, 8).transpose(1, 2)
        k = self.k(y).reshape(b, t, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
        v = self.v(y).reshape(b, t, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
        y = ((q @ k.transpose(-2, -1)) * 8**-0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, 32))
        y = self.norm(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(1))


@net(2, 16, 16, 16)
class WindowAttention(nn.Module):
    """Attention inside shifted windows of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Conv2d(16, 32, 1), nn.Linear(32, 96), nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(x, (-2, -2), (1, 2)).reshape(b, h // 4, 4, w // 4, 4, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c)
        y = self.out(y).reshape(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5)
        x = x + torch.roll(y.reshape(b, h, w, c), (2, 2), (1, 2))
        return self.head(x.mean((1, 2)))


@net(2, 4, 64)
class Conv1d(nn.Module):
    """A dilated residual network over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 32, 7, 2, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(32, 64, 3, padding=d, dilation=d), nn.PReLU(64), nn.Conv1d(64, 32, 1)
            )
            for d in (1, 2, 4)
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.amax(2))


@net(2, 2, 8, 16, 16)
class Conv3d(nn.Module):
    """A small network over volumes, with group and instance normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(2, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(16, 32, 3, padding=1), nn.InstanceNorm3d(32, affine=True), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@net(2, 3, 32, 32)
class ShuffleGroups(nn.Module):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 48)
        self.one, self.two = conv(48, 48, 1, groups=3), conv(48, 48, 3, groups=48)
        self.three, self.head = conv(48, 48, 1, groups=3), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.one(x)
        b, c, h, w = y.shape
        y = y.reshape(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head((x + self.three(self.two(y))).mean((2, 3)))


class FirstOutput(nn.Module):
    """A model of transformers that returns its first output only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


def transformer_nets() -> dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]]:
    """Return small models of transformers' families, random weights."""
    import transformers as t

    ids = lambda: (torch.randint(100, (2, 12)),)  # noqa: E731
    image = lambda: (torch.randn(2, 3, 32, 32),)  # noqa: E731
    text: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_labels": 5,
    }
    vision = text | {"image_size": 32, "patch_size": 8}
    del vision["vocab_size"]
    eager = {"attn_implementation": "eager", "use_cache": False}
    made = {
        "bert": (t.BertForSequenceClassification, t.BertConfig(**text, **eager), ids),
        "distilbert": (t.DistilBertForSequenceClassification, t.DistilBertConfig(vocab_size=100,
            dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=5, **eager), ids),
        "roberta": (t.RobertaForSequenceClassification, t.RobertaConfig(**text, **eager), ids),
        "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(
            vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, **eager), ids),
        "llama": (t.LlamaForCausalLM, t.LlamaConfig(
            **text, num_key_value_heads=2, max_position_embeddings=64, **eager), ids),
        "t5": (t.T5EncoderModel, t.T5Config(
            vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **eager), ids),
        "vit": (t.ViTForImageClassification, t.ViTConfig(**vision, **eager), image),
        "deit": (t.DeiTForImageClassification, t.DeiTConfig(**vision, **eager), image),
        "convnext": (t.ConvNextForImageClassification, t.ConvNextConfig(
            hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], num_labels=5), image),
        "resnet": (t.ResNetForImageClassification, t.ResNetConfig(embedding_size=16,
            hidden_sizes=[32, 64], depths=[1, 1], num_labels=5), image),
        "segformer": (t.SegformerForSemanticSegmentation, t.SegformerConfig(
            hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], decoder_hidden_size=32,
            num_labels=5), lambda: (torch.randn(2, 3, 64, 64),)),
    }  # fmt: skip
    return {
        f"hf_{name}": (lambda cls=cls, config=config: FirstOutput(cls(config)), example)
        for name, (cls, config, example) in made.items()
    }


def export_sklearn(folder: Path) -> None:
    """Export a scikit-learn pipeline with a multi-layer perceptron."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=30, random_state=0))
    model = to_onnx(pipeline.fit(x, y), x[:1].astype("float32"), options={"zipmap": False})
    (folder / "sklearn_mlp.onnx").write_bytes(model.SerializeToString())


def main() -> None:
    """Export every registered network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dynamo", action="store_true")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    nets = dict(NETS)
    try:
        nets |= transformer_nets()
    except ImportError as error:
        print(f"without transformers: {error}")
    for name, (build, example) in nets.items():
        if a.names and name not in a.names:
            continue
        torch.manual_seed(0)
        model, inputs = build().eval(), example()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        out = a.folder / f"{name}{'_dynamo' if a.dynamo else ''}.onnx"
        kind: dict[str, Any] = {"dynamo": True, "opset_version": 18} if a.dynamo else {
            "dynamo": False, "opset_version": 17,
            "dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}},
        }  # fmt: skip
        try:
            torch.onnx.export(model, inputs, out, input_names=["input"], output_names=["output"],
                              verbose=False, **kind)  # fmt: skip
            print(f"ok {name}", flush=True)
        except Exception as error:
            print(f"FAIL {name}: {error!r:.150}", flush=True)
    if not a.dynamo:
        try:
            export_sklearn(a.folder)
        except ImportError as error:
            print(f"without scikit-learn: {error}")


if __name__ == "__main__":
    main()
