"""Small networks of many fields, written down as papers describe them, random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NETS: dict[str, tuple[Callable[[], nn.Module], Sequence[str]]] = {}


def net(*specs: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a network with its inputs (see :func:`export_fresh.example`)."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        NETS[f"own_{cls.__name__.lower()}"] = (cls, specs)
        return cls

    return register


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def conv(a: int, b: int, k: int = 3, s: int = 1, **how: Any) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    return nn.Sequential(
        nn.Conv2d(a, b, k, s, k // 2, bias=False, **how), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)
    )


# -- recommenders and tables -------------------------------------------------------------------


@net("float N 8", "ids20 N 5")
class DLRM(nn.Module):
    """Dot products between embeddings and a bottom network; one output."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 16) for _ in range(5))
        self.bottom, self.top = mlp(8, 64, 32, 16), mlp(16 + 15, 64, 32, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = torch.stack([x, *(t(ids[:, k]) for k, t in enumerate(self.tables))], 1)
        z = rows @ rows.transpose(1, 2)
        i, j = torch.tril_indices(6, 6, -1)
        return torch.sigmoid(self.top(torch.cat([x, z[:, i, j]], 1)))


@net("ids20 N", "ids20 N")
class NCF(nn.Module):
    """A product of factors beside a network; one output."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.i, self.mu, self.mi = (nn.Embedding(20, 16) for _ in range(4))
        self.body, self.head = mlp(32, 64, 32, 16), nn.Linear(32, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        deep = self.body(torch.cat([self.mu(user), self.mi(item)], -1)).relu()
        return torch.sigmoid(self.head(torch.cat([self.u(user) * self.i(item), deep], -1))).squeeze(
            -1
        )


@net("ids50 N 6")
class DeepFM(nn.Module):
    """Factorisation machine and network on the same embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table, self.deep = (
            nn.Embedding(50, 1),
            nn.Embedding(50, 16),
            mlp(96, 64, 64, 1),
        )

    def forward(self, ids: Tensor) -> Tensor:
        e = self.table(ids)
        pairs = 0.5 * (e.sum(1).pow(2) - e.pow(2).sum(1)).sum(1, keepdim=True)
        return self.first(ids).sum(1) + pairs + self.deep(e.flatten(1))


@net("ids50 N 6")
class XDeepFM(nn.Module):
    """Compressed interactions by one-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.c1, self.c2 = (
            nn.Embedding(50, 16),
            nn.Conv1d(36, 24, 1),
            nn.Conv1d(72, 24, 1),
        )
        self.deep, self.head = mlp(96, 64, 32), nn.Linear(24 + 12 + 32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        e = self.table(ids)
        one = self.c1((e.unsqueeze(2) * e.unsqueeze(1)).reshape(-1, 36, 16)).relu()
        kept, one = one.split([12, 12], 1)
        two = self.c2((one.unsqueeze(2) * e.unsqueeze(1)).reshape(-1, 72, 16)).relu()
        return self.head(torch.cat([kept.sum(2), two.sum(2), self.deep(e.flatten(1))], 1))


@net("ids50 N L")
class SASRec(nn.Module):
    """Causal self-attention over clicked items; scores by the item table."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2)
        )

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        x = self.items(ids) + self.places(torch.arange(n))
        mask = torch.ones(n, n).triu(1) * -1e4
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return x[:, -1] @ self.items.weight.t()


@net("float N 10")
class FTTransformer(nn.Module):
    """Every feature a token, a class token, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(10, 32)), nn.Parameter(torch.randn(10, 32))
        self.cls = nn.Parameter(torch.randn(1, 1, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, batch_first=True, norm_first=True, activation="gelu"
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(-1) * self.w + self.b
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1)
        return self.head(self.body(tokens)[:, 0])


@net("float N 10")
class TabNet(nn.Module):
    """Steps of attentive masks and gated linear units."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)
        self.shared = nn.Linear(10, 64)
        self.own = nn.ModuleList(nn.Linear(32, 64) for _ in range(3))
        self.mask = nn.ModuleList(nn.Linear(16, 10) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        prior, a, out = torch.ones_like(x), x.new_zeros(x.shape[0], 16), 0
        for own, attend in zip(self.own, self.mask, strict=True):
            m = torch.softmax(attend(a) * prior, -1)
            prior = prior * (1.3 - m)
            h = F.glu(self.shared(x * m))
            h = (h + F.glu(own(h))) * 0.7071
            d, a = h.split([16, 16], 1)
            out = out + d.relu()
        return self.head(out)


@net("float N 16")
class ActorCritic(nn.Module):
    """Two heads, one with one output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = (
            mlp(16, 64, 64, act=nn.Tanh),
            nn.Linear(64, 6),
            mlp(64, 32, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x).tanh()
        return self.policy(y).softmax(-1), self.value(y)


@net("float N 4 84 84")
class DQN(nn.Module):
    """Dueling heads behind convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 16, 8, 4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.value, self.gain = mlp(32 * 49, 64, 1), mlp(32 * 49, 64, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        gain = self.gain(y)
        return self.value(y) + gain - gain.mean(1, keepdim=True)


@net("float N 2 9 9")
class AlphaZero(nn.Module):
    """A residual tower with a policy and a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 32)
        self.tower = nn.ModuleList(
            nn.Sequential(conv(32, 32), nn.Conv2d(32, 32, 3, padding=1)) for _ in range(3)
        )
        self.p, self.v = conv(32, 2, 1), conv(32, 1, 1)
        self.policy, self.value = nn.Linear(162, 82), mlp(81, 32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        for block in self.tower:
            x = (x + block(x)).relu()
        return self.policy(self.p(x).flatten(1)), self.value(self.v(x).flatten(1)).tanh()


# -- graphs and points -----------------------------------------------------------------------


@net("float V 16", "float V V")
class GCN(nn.Module):
    """Convolutions by a dense adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(16, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = (adjacency @ self.one(x)).relu()
        return self.head((adjacency @ self.two(x)).relu())


@net("float V 16", "ids10 2 E")
class GIN(nn.Module):
    """Sums over the edges by index_add; edges as indices."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = mlp(16, 64, 32), mlp(32, 64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.one, self.two):
            x = layer(x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])).relu()
        return self.head(x.mean(0, keepdim=True))


@net("float V 16", "ids10 2 E")
class GAT(nn.Module):
    """Attention over edges by scatter_add along expanded indices."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(16, 32), nn.Linear(32, 5)
        self.a, self.b = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.one(x).reshape(-1, 4, 8)
        e = F.leaky_relu(self.a(h)[edges[0]] + self.b(h)[edges[1]], 0.2).exp()
        total = torch.zeros_like(h[:, :, :1]).index_add(0, edges[1], e)
        sent = torch.zeros_like(h).index_add(0, edges[1], e * h[edges[0]])
        return self.head((sent / (total + 1)).flatten(1).relu())


@net("float N 3 T=64")
class PointNet(nn.Module):
    """A learned transform, shared layers, a maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.turn, self.body = (
            mlp(32, 32, 9),
            nn.Sequential(
                nn.Conv1d(3, 32, 1),
                nn.BatchNorm1d(32),
                nn.ReLU(),
                nn.Conv1d(32, 64, 1),
                nn.BatchNorm1d(64),
                nn.ReLU(),
            ),
        )
        self.head = mlp(64, 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(self.t(x).amax(2)).reshape(-1, 3, 3) + torch.eye(3)
        return self.head(self.body(turn @ x).amax(2))


@net("float T=40 3")
class NeRF(nn.Module):
    """Sines and cosines, a skip in the middle, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = mlp(3 + 24, 64, 64), mlp(64 + 27, 64, 64)
        self.sigma, self.rgb = nn.Linear(64, 1), mlp(64, 32, 3)
        self.register_buffer("f", 2.0 ** torch.arange(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = (x.unsqueeze(-1) * self.f).flatten(1)
        code = torch.cat([x, angles.sin(), angles.cos()], -1)
        y = self.two(torch.cat([self.one(code).relu(), code], -1)).relu()
        return self.sigma(y), self.rgb(y).sigmoid()


# -- audio -----------------------------------------------------------------------------------


@net("float N 1 T=1600")
class ConvTasNet(nn.Module):
    """Encoder, masks by a dilated separator with global normalisation, decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = (
            nn.Conv1d(1, 32, 16, 8, bias=False),
            nn.ConvTranspose1d(32, 1, 16, 8, bias=False),
        )
        self.narrow, self.masks = nn.Conv1d(32, 16, 1), nn.Conv1d(16, 64, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(16, 32, 1),
                nn.PReLU(),
                nn.GroupNorm(1, 32),
                nn.Conv1d(32, 32, 3, padding=d, dilation=d, groups=32),
                nn.PReLU(),
                nn.BatchNorm1d(32),
                nn.Conv1d(32, 16, 1),
            )
            for d in (1, 2, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        w = self.enc(x).relu()
        y = self.narrow(w)
        for block in self.blocks:
            y = y + block(y)
        m = self.masks(y).sigmoid().reshape(y.shape[0], 2, 32, -1)
        return self.dec((m * w.unsqueeze(1)).flatten(0, 1)).reshape(x.shape[0], 2, -1)


@net("float N 20 T=16")
class HifiGAN(nn.Module):
    """Upsampling with sums of dilated residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.post = nn.Conv1d(20, 64, 7, padding=3), nn.Conv1d(16, 1, 7, padding=3)
        self.ups = nn.ModuleList(nn.ConvTranspose1d(64 >> i, 32 >> i, 8, 4, 2) for i in range(2))
        self.res = nn.ModuleList(
            nn.ModuleList(
                nn.Conv1d(32 >> i, 32 >> i, k, padding=d * (k - 1) // 2, dilation=d)
                for k, d in ((3, 1), (3, 3), (7, 1))
            )
            for i in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for up, blocks in zip(self.ups, self.res, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(x + b(F.leaky_relu(x, 0.1)) for b in blocks) / 3
        return self.post(F.leaky_relu(x)).tanh()


@net("float N 1 T=256")
class WaveNet(nn.Module):
    """Gated dilated convolutions; residual and skip parts of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = (
            nn.Conv1d(1, 24, 1),
            nn.Sequential(nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 10, 1)),
        )
        self.gates = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=d) for d in (1, 2, 4))
        self.outs = nn.ModuleList(nn.Conv1d(24, 24 + 32, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for gate, out in zip(self.gates, self.outs, strict=True):
            a, b = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            r, s = out(a.tanh() * b.sigmoid()).split([24, 32], 1)
            x, total = x + r, total + s
        return self.head(total)


@net("float N T=100 8")
class TCN(nn.Module):
    """Causal convolutions with residuals over time."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList(
            nn.Conv1d(8 if i == 0 else 32, 32, 3, dilation=2**i) for i in range(3)
        )
        self.b = nn.ModuleList(nn.Conv1d(32, 32, 3, dilation=2**i) for i in range(3))
        self.skip, self.head = nn.Conv1d(8, 32, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for i, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            left = (2 * 2**i, 0)
            y = b(F.pad(a(F.pad(x, left)).relu(), left)).relu()
            x = (y + (self.skip(x) if i == 0 else x)).relu()
        return self.head(x[:, :, -1])


@net("ids30 N L", "float N T=20 16")
class Tacotron(nn.Module):
    """Text encoder with convolutions and a bidirectional LSTM, attention of frames, a postnet."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 32)
        self.convs = nn.Sequential(nn.Conv1d(32, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU())
        self.enc, self.pre = nn.LSTM(32, 16, batch_first=True, bidirectional=True), mlp(16, 32, 32)
        self.q, self.k, self.v = nn.Linear(32, 24), nn.Linear(32, 24), nn.Linear(24, 1)
        self.dec, self.mel, self.stop = (
            nn.LSTM(64, 32, batch_first=True),
            nn.Linear(32, 16),
            nn.Linear(32, 1),
        )
        self.post = nn.Sequential(
            nn.Conv1d(16, 32, 5, padding=2), nn.Tanh(), nn.Conv1d(32, 16, 5, padding=2)
        )

    def forward(self, ids: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        memory, _ = self.enc(self.convs(self.table(ids).transpose(1, 2)).transpose(1, 2))
        x = self.pre(mel)
        score = self.v(torch.tanh(self.q(x).unsqueeze(2) + self.k(memory).unsqueeze(1))).squeeze(-1)
        y, _ = self.dec(torch.cat([x, score.softmax(-1) @ memory], -1))
        out = self.mel(y)
        return out + self.post(out.transpose(1, 2)).transpose(1, 2), self.stop(y)


@net("float N 1 32 W=96")
class CRNN(nn.Module):
    """Text in images: convolutions, two bidirectional LSTMs, a row of classes for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(1, 16),
            nn.MaxPool2d(2),
            conv(16, 32),
            nn.MaxPool2d((2, 1)),
            conv(32, 32),
            nn.MaxPool2d((8, 1)),
        )
        self.rnn, self.head = nn.LSTM(32, 24, 2, bidirectional=True), nn.Linear(48, 37)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.body(x).squeeze(2).permute(2, 0, 1))[0]).log_softmax(-1)


@net("float N T=30 6", "float 1 N 24", "float 1 N 24")
class Streaming(nn.Module):
    """An LSTM whose states are inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rnn, self.head = (
            mlp(6, 48, 16),
            nn.LSTM(16, 24, batch_first=True),
            mlp(24, 32, 1),
        )

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(self.inner(x).relu(), (h, c))
        return self.head(y).sigmoid(), h, c


# -- images ----------------------------------------------------------------------------------


@net("float N 3 H=24 W=24")
class EDSR(nn.Module):
    """Residual blocks without normalisation, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
            )
            for _ in range(3)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(32, 128, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(32, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.stem(x)
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return self.tail(x + y)


@net("float N 3 H=24 W=24")
class RCAN(nn.Module):
    """Channel attention inside residual groups."""

    class Block(nn.Module):
        """A residual block with a gate."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
            )
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(32, 8, 1),
                nn.ReLU(),
                nn.Conv2d(8, 32, 1),
                nn.Sigmoid(),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return x + y * self.gate(y)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = (
            nn.Conv2d(3, 32, 3, padding=1),
            nn.Sequential(self.Block(), self.Block()),
        )
        self.tail = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.PReLU(16), nn.Conv2d(16, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.blocks(self.stem(x)))
        return y + F.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)


@net("float N 1 H=20 W=20")
class ESPCN(nn.Module):
    """Three convolutions and a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 64, 5, padding=2),
            nn.Tanh(),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(32, 9, 3, padding=1),
            nn.PixelShuffle(3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@net("float N 3 H=24 W=24")
class RRDB(nn.Module):
    """Dense blocks inside residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 3, 3, padding=1)
        self.dense = nn.ModuleList(
            nn.Conv2d(24 + 12 * i, 12 if i < 3 else 24, 3, padding=1) for i in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = [x]
        for layer in self.dense[:-1]:
            parts.append(F.leaky_relu(layer(torch.cat(parts, 1)), 0.2))
        x = x + 0.2 * self.dense[-1](torch.cat(parts, 1))
        return self.tail(F.leaky_relu(F.interpolate(x, scale_factor=2.0), 0.2))


@net("float N 3 H=64 W=64")
class YOLOv3(nn.Module):
    """Residual backbone, a route back and heads whose boxes are made on a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 16, s=2), conv(16, 32, s=2), conv(32, 64, s=2)
        self.r2, self.r3 = (
            nn.Sequential(conv(32, 16, 1), conv(16, 32)),
            nn.Sequential(conv(64, 32, 1), conv(32, 64)),
        )
        self.far, self.lift, self.near = (
            nn.Conv2d(64, 3 * 7, 1),
            conv(64, 16, 1),
            nn.Conv2d(48, 3 * 7, 1),
        )

    def decode(self, y: Tensor) -> Tensor:
        n, _, h, w = y.shape
        y = y.reshape(n, 3, 7, h, w).permute(0, 1, 3, 4, 2)
        gy, gx = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        xy = y[..., :2].sigmoid() + torch.stack([gx, gy], -1)
        return torch.cat([xy, y[..., 2:4].exp(), y[..., 4:].sigmoid()], -1).reshape(n, -1, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x))
        y = y + self.r2(y)
        z = self.three(y)
        z = z + self.r3(z)
        near = torch.cat([F.interpolate(self.lift(z), scale_factor=2.0), y], 1)
        return torch.cat([self.decode(self.far(z)), self.decode(self.near(near))], 1)


@net("float N 3 H=64 W=64")
class PartialConv(nn.Module):
    """A convolution on a quarter of the channels, the rest passes by; ghost features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part = conv(3, 32, s=2), nn.Conv2d(8, 8, 3, padding=1)
        self.inner = nn.Sequential(conv(32, 64, 1), nn.Conv2d(64, 32, 1))
        self.ghost, self.cheap = conv(32, 16, 1), conv(16, 16, groups=16)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.split([8, 24], 1)
        x = x + self.inner(torch.cat([self.part(a), b], 1))
        y = self.ghost(x)
        y = torch.cat([y, self.cheap(y)], 1)
        y = y.reshape(y.shape[0], 2, 16, y.shape[2], y.shape[3]).transpose(1, 2).flatten(1, 2)
        return self.head(y.mean((2, 3)))


@net("float N 3 H=64 W=64")
class CenterNet(nn.Module):
    """Three heads on a pyramid with weighted sums (BiFPN)."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.ModuleList([conv(3, 16, s=2), conv(16, 32, s=2), conv(32, 48, s=2)])
        self.l = nn.ModuleList([nn.Conv2d(16, 24, 1), nn.Conv2d(32, 24, 1), nn.Conv2d(48, 24, 1)])
        self.w = nn.Parameter(torch.rand(2, 2) + 0.5)
        self.mix = nn.ModuleList([conv(24, 24, groups=24), conv(24, 24, 1)])
        self.heads = nn.ModuleList(
            nn.Sequential(conv(24, 16), nn.Conv2d(16, k, 1)) for k in (4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for c in self.c:
            x = c(x)
            levels.append(x)
        y = self.l[2](levels[2])
        for i in (1, 0):
            w = self.w[i].relu()
            w = w / (w.sum() + 1e-4)
            y = w[0] * F.interpolate(y, scale_factor=2.0) + w[1] * self.l[i](levels[i])
        y = self.mix[1](self.mix[0](y))
        return tuple(h(y) for h in self.heads)


@net("float N 1 H=32 W=32")
class VAE(nn.Module):
    """Mean and variance; the mean is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()
        )
        self.mu, self.var = nn.Conv2d(32, 8, 1), nn.Conv2d(32, 8, 1)
        self.dec = nn.Sequential(
            nn.ConvTranspose2d(8, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.enc(x)
        mu = self.mu(y)
        return self.dec(mu).sigmoid(), mu, self.var(y)


@net("float N 12")
class RealNVP(nn.Module):
    """Coupling layers: one half passes by, the other is scaled and moved."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(6, 64, 12) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = 0
        for one in self.nets:
            a, b = x.chunk(2, 1)
            s, t = one(a).chunk(2, 1)
            x, total = torch.cat([b * s.tanh().exp() + t, a], 1), total + s.tanh().sum(1)
        return x, total


@net("float N 4 16 16", "float N", "float N L=5 24")
class Diffusion(nn.Module):
    """U-Net with a time embedding, group normalisation, self- and cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.time = mlp(16, 64, 64, act=nn.SiLU)
        self.stem, self.down, self.out = (
            nn.Conv2d(4, 32, 3, padding=1),
            nn.Conv2d(32, 32, 3, 2, 1),
            nn.Conv2d(32, 4, 3, padding=1),
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, 32) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
        self.shift, self.qkv = nn.Linear(64, 64), nn.Linear(32, 96)
        self.q, self.kv, self.o, self.p = (
            nn.Linear(32, 32),
            nn.Linear(24, 64),
            nn.Linear(32, 32),
            nn.Linear(32, 32),
        )
        self.up = nn.Conv2d(64, 32, 3, padding=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.reshape(t.shape[0], -1, 4, 8).transpose(1, 2) for t in (q, k, v))
        return ((q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(8) / 2.0)
        scale, shift = self.shift(self.time(torch.cat([angles.sin(), angles.cos()], 1)))[
            :, :, None, None
        ].chunk(2, 1)
        x = self.stem(x)
        y = self.convs[0](F.silu(self.norms[0](x)))
        y = x + self.convs[1](F.silu(self.norms[1](y) * (1 + scale) + shift))
        z = self.down(y)
        n, c, h, w = z.shape
        s = self.norms[2](z).flatten(2).transpose(1, 2)
        s = s + self.o(self.attend(*self.qkv(s).chunk(3, -1)))
        s = s + self.p(self.attend(self.q(s), *self.kv(text).chunk(2, -1)))
        z = z + s.transpose(1, 2).reshape(n, c, h, w)
        return self.out(F.silu(self.up(torch.cat([F.interpolate(z, scale_factor=2.0), y], 1))))


@net("float N 16 24", "float N 24")
class DiT(nn.Module):
    """A transformer block whose normalisation is modulated by a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.cond = nn.Linear(24, 32), nn.Sequential(nn.SiLU(), nn.Linear(24, 6 * 32))
        self.n1, self.n2 = (
            nn.LayerNorm(32, elementwise_affine=False),
            nn.LayerNorm(32, elementwise_affine=False),
        )
        self.qkv, self.o, self.ff, self.out = (
            nn.Linear(32, 96),
            nn.Linear(32, 32),
            mlp(32, 128, 32, act=nn.GELU),
            nn.Linear(32, 24),
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.inp(x)
        a, b, g, d, e, h = self.cond(c).unsqueeze(1).chunk(6, 2)
        q, k, v = (
            self.qkv(self.n1(x) * (1 + a) + b)
            .reshape(x.shape[0], 16, 3, 4, 8)
            .permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 16, 32)
        x = x + g * self.o(y)
        return self.out(x + h * self.ff(self.n2(x) * (1 + d) + e))


@net("float N L=16 32")
class Experts(nn.Module):
    """Stacked experts, all computed, mixed by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(32, 4), nn.Linear(32, 5)
        self.up, self.down = (
            nn.Parameter(torch.randn(4, 32, 64) / 6),
            nn.Parameter(torch.randn(4, 64, 32) / 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        y = torch.einsum("nlc,ech->nleh", x, self.up).relu()
        y = torch.einsum("nleh,ehc->nlec", y, self.down)
        return self.head((x + (y * gates.unsqueeze(-1)).sum(2)).mean(1))


@net("float N 3 32 32")
class MobileOneLike(nn.Module):
    """Parallel branches that are summed, squeeze-excite, hard activations, a linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw, self.pw = conv(3, 24, s=2), conv(72, 72, groups=72), conv(24, 72, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(72, 16, 1),
            nn.ReLU(),
            nn.Conv2d(16, 72, 1),
            nn.Hardsigmoid(),
        )
        self.out, self.b1, self.b2, self.head = (
            nn.Conv2d(72, 24, 1),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.Conv2d(24, 24, 1),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.dw(self.pw(x)))
        x = x + self.out(y * self.gate(y))
        return self.head((self.b1(x) + self.b2(x) + x).relu().mean((2, 3)))


@net("float N T=40 4 12 12")
class ConvLSTM(nn.Module):
    """One step of a convolutional LSTM over a window of frames, folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.enc, self.head = (
            nn.Conv2d(32, 64, 3, padding=1),
            nn.Conv2d(4, 16, 3, padding=1),
            nn.Conv2d(16, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = c = self.enc(x[:, 0]).tanh()
        for k in (1, 2):
            i, f, o, g = self.gates(torch.cat([self.enc(x[:, k]), h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


@net("float N 1 16 32 32")
class UNet3d(nn.Module):
    """Volumes, with skips and instance normalisation."""

    def __init__(self) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            norm = nn.InstanceNorm3d(b, affine=True)
            return nn.Sequential(nn.Conv3d(a, b, 3, padding=1), norm, nn.LeakyReLU(0.01))

        self.a, self.b, self.c, self.up = (
            block(1, 8),
            block(8, 16),
            block(24, 8),
            nn.ConvTranspose3d(16, 16, 2, 2),
        )
        self.head = nn.Conv3d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.head(self.c(torch.cat([self.up(self.b(F.max_pool3d(a, 2))), a], 1)))


@net("float N L=20 8", "float N L=20 8")
class Siamese(nn.Module):
    """One encoder used twice, a bilinear form and a cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.rnn, self.w = (
            mlp(8, 48, 24),
            nn.GRU(24, 24, batch_first=True),
            nn.Linear(24, 24, bias=False),
        )

    def code(self, x: Tensor) -> Tensor:
        return F.normalize(self.rnn(self.enc(x).relu())[0].mean(1), dim=-1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.code(a), self.code(b)
        return torch.stack([(self.w(a) * b).sum(-1), (a * b).sum(-1)], -1)


@net("float N L=24 4")
class NBeats(nn.Module):
    """Blocks that subtract what they explain and add to a forecast."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(mlp(96, 64, 64) for _ in range(3))
        self.back, self.fore = (
            nn.ModuleList(nn.Linear(64, 96) for _ in range(3)),
            nn.ModuleList(nn.Linear(64, 8) for _ in range(3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, y = x.reshape(x.shape[0], 96), 0
        for body, back, fore in zip(self.bodies, self.back, self.fore, strict=True):
            h = body(x).relu()
            x, y = x - back(h), y + fore(h)
        return y


@net("float N 3 H=48 W=48")
class HourGlass(nn.Module):
    """Pose heat maps with two stacked hourglasses and intermediate outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 24, s=2)
        self.down, self.low, self.skip = (
            nn.ModuleList(conv(24, 24) for _ in range(2)) for _ in range(3)
        )
        self.maps, self.back, self.feat = (
            nn.ModuleList(nn.Conv2d(a, b, 1) for _ in range(2))
            for a, b in ((24, 5), (5, 24), (24, 24))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, outs = self.stem(x), []
        for k in range(2):
            y = self.low[k](self.down[k](F.max_pool2d(x, 2)))
            y = F.interpolate(y, size=x.shape[2:]) + self.skip[k](x)
            outs.append(self.maps[k](y))
            x = x + self.feat[k](y) + self.back[k](outs[-1])
        return outs[0], outs[1]


@net("float N 3 64 64")
class BiSeNet(nn.Module):
    """A spatial and a context path, global context by pooling, attention refinement."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(conv(3, 16, s=2), conv(16, 24, s=2))
        self.context = nn.Sequential(conv(3, 16, s=2), conv(16, 24, s=2), conv(24, 32, s=2))
        self.gate, self.fuse, self.head = nn.Conv2d(32, 32, 1), conv(56, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        c = self.context(x)
        pooled = F.adaptive_avg_pool2d(c, 1)
        c = c * self.gate(pooled).sigmoid() + pooled
        c = F.interpolate(c, scale_factor=2.0, mode="bilinear", align_corners=True)
        y = self.fuse(torch.cat([self.spatial(x), c], 1))
        return F.interpolate(self.head(y), size=x.shape[2:], mode="bilinear", align_corners=True)


@net("ids50 N L", "ids50 N S=9")
class Seq2Seq(nn.Module):
    """torch's own encoder and decoder with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Embedding(50, 32), nn.Embedding(50, 32), nn.Linear(32, 50)
        self.body = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        n = target.shape[1]
        mask = torch.ones(n, n).triu(1) * -1e4
        return self.head(self.body(self.a(source), self.b(target), tgt_mask=mask))
