"""Small networks, one for each family of architectures, as plain torch modules, and their exports to ONNX.

Each is a classifier of 3-channel images of `SIZE` pixels into `CLASSES` classes. Weights are random and alive: batch
statistics and scales are not the identity. Used by the tests and by benchmarks/lowering_speed.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, CLASSES = 32, 10


def _bn_relu(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class Plain(nn.Module):
    """VGG: convolutions, pooling, dropout, two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(_bn_relu(3, 16), nn.MaxPool2d(2), _bn_relu(16, 32), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(32 * 64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.a = _bn_relu(c_in, c_out, 3, stride)
        self.b = nn.Sequential(nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out))
        self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.a(x)) + self.skip(x))


class Residual(nn.Module):
    """ResNet: sums of two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = _bn_relu(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.pool(self.stem(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """DenseNet: every layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 8 * i), nn.ReLU(), nn.Conv2d(8 + 8 * i, 8, 3, padding=1)) for i in range(4)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1), nn.AvgPool2d(2, 2))
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(self.transition(torch.cat(features, 1)).mean((2, 3)))  # type: ignore[no-any-return]


class Inception(nn.Module):
    """Inception: four paths side by side, ceil_mode pooling, local response normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _bn_relu(3, 12, 3, 2)
        self.norm = nn.LocalResponseNorm(5, 1e-2, 0.75, 1.0)
        self.paths = nn.ModuleList(
            [
                _bn_relu(12, 8, 1),
                nn.Sequential(_bn_relu(12, 4, 1), _bn_relu(4, 8, 3)),
                nn.Sequential(_bn_relu(12, 4, 1), _bn_relu(4, 8, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), _bn_relu(12, 8, 1)),
            ]
        )
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.head = nn.Conv2d(32, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        y = self.pool(torch.cat([path(y) for path in self.paths], 1))
        return F.avg_pool2d(self.head(y), 8).flatten(1)


class _Inverted(nn.Module):
    def __init__(self, c: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(c, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(wide, wide, 5, 1, 2, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.project = nn.Sequential(nn.Conv2d(wide, c, 1, bias=False), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(y * gate)  # type: ignore[no-any-return]


class Mobile(nn.Module):
    """MobileNetV3 and EfficientNet: inverted residuals, squeeze and excitation, SiLU, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.blocks = nn.Sequential(_Inverted(16, 32), _Inverted(16, 48))
        self.head = nn.Sequential(nn.ReLU6(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Shuffle(nn.Module):
    """ShuffleNet: the shape is read from the tensor, channels are cut, shuffled and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _bn_relu(3, 16, 3, 2)
        self.units = nn.ModuleList(_bn_relu(8, 8, 3, groups=8) for _ in range(3))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for unit in self.units:
            a, b = y.chunk(2, 1)
            y = torch.cat([a, unit(b)], 1)
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


class ConvNext(nn.Module):
    """ConvNeXt: depthwise 7x7, LayerNorm and linear layers on the last axis, GELU, a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.depth = nn.ModuleList(nn.Conv2d(24, 24, 7, padding=3, groups=24) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.full((24,), 0.5))
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for depth, mlp in zip(self.depth, self.mlp, strict=True):
            y = y + (mlp(depth(y).permute(0, 2, 3, 1)) * self.scale).permute(0, 3, 1, 2)
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """ViT: patches, a class token repeated for the batch, positions, attention by torch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.positions
        return self.head(self.encoder(y)[:, 0])  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Swin: attention in shifted windows, cut out and put back by reshapes and rolls, with relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.out = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 72), nn.Linear(24, 24)
        self.table = nn.Parameter(torch.randn(49, 2) * 0.1)
        ys, xs = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        grid = torch.stack([ys.flatten(), xs.flatten()])
        offsets = grid[:, :, None] - grid[:, None, :] + 3
        self.register_buffer("index", offsets[0] * 7 + offsets[1])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = y.shape
        z = torch.roll(self.norm(y), (-2, -2), (1, 2))
        z = z.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(z).reshape(z.shape[0], 16, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        attention = torch.softmax(q @ k.transpose(-2, -1) * 12**-0.5 + bias, -1)
        z = self.out((attention @ v).transpose(1, 2).reshape(-1, 16, c))
        z = z.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return self.head((y + torch.roll(z, (2, 2), (1, 2))).mean((1, 2)))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """MLP-Mixer: matrices across patches and across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 24, 8, 8), nn.LayerNorm(24)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(approximate="tanh"), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(24, 48), nn.Mish(), nn.Linear(48, 24))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = y + self.tokens(self.norm(y).transpose(1, 2)).transpose(1, 2)
        return self.head((y + self.channels(self.norm(y))).mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Rows of pixels through two layers of a bidirectional LSTM or GRU."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers = kind(3 * SIZE, 12, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.permute(0, 2, 1, 3).flatten(2))[0].mean(1))  # type: ignore[no-any-return]


class Upsampling(nn.Module):
    """Transposed convolutions and every common resize, padding by reflection, GroupNorm and InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2)
        self.norms = nn.Sequential(nn.GroupNorm(4, 8), nn.ELU(), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.pad(x, (1, 1, 1, 1), mode="reflect"))[:, :, :16, :16]
        z = self.norms(self.up(y))
        z = z + F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        z = z + F.interpolate(y, size=(32, 32), mode="bicubic", align_corners=True)
        z = z + F.interpolate(y, scale_factor=2.0, mode="nearest")
        return self.head(z.mean((2, 3)))  # type: ignore[no-any-return]


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "dense": Dense,
    "inception": Inception,
    "mobile": Mobile,
    "shuffle": Shuffle,
    "convnext": ConvNext,
    "transformer": Transformer,
    "windows": Windows,
    "mixer": Mixer,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "upsampling": Upsampling,
}


def build(name: str, families: Mapping[str, Callable[[], nn.Module]] = FAMILIES) -> nn.Module:
    """The network, in evaluation mode, with seeded weights and lively statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = families[name]()
        for module in network.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def images(n: int, seed: int = 0) -> Tensor:
    """``(n, 3, SIZE, SIZE)`` in [0, 1)."""
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def export(
    network: nn.Module,
    *,
    dynamo: bool,
    opset: int | None = None,
    batch: int | None = None,
    example: Tensor | None = None,
) -> onnx.ModelProto:
    """The network as ONNX: by torch's default exporter or the older one; for any batch size, or for `batch` alone."""
    example = images(batch or 2) if example is None else example
    target = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = None if batch else ({0: torch.export.Dim("n")},)
            program = torch.onnx.export(
                network, (example,), dynamo=True, dynamic_shapes=shapes, opset_version=opset, verbose=False
            )
            assert program is not None
            program.save(target)
        else:
            axes = None if batch else {"x": {0: "n"}, "y": {0: "n"}}
            torch.onnx.export(
                network,
                (example,),
                target,
                dynamo=False,
                opset_version=opset or 17,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes=axes,
            )
    return onnx.load_model_from_string(target.getvalue())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
