"""Two dozen more families of classifiers beside those of lowering_families.py, for the matrix of exports.

Each takes ``(n, 3, SIZE, SIZE)`` images and has what its family brought into graphs: grouped and separable convolutions,
channels cut and joined, attention over windows, grids and class tokens, weights that are standardised at run time,
pooling to several sizes, recurrence over a convolution's columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from lowering_families import CLASSES, FAMILIES, SIZE
from torch import Tensor, nn


def conv(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch normalisation, activation."""
    padding = kernel // 2
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(c_out), act()]
    return nn.Sequential(*layers)


class Pooled(nn.Module):
    """A body of layers, the mean over the image, and a linear layer."""

    def __init__(self, channels: int, *body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*body), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


class Skip(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class Branches(nn.Module):
    """The outputs of several bodies, joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class SqueezeExcite(nn.Module):
    """Channels weighted by what their means say."""

    def __init__(self, channels: int, gate: type = nn.Sigmoid) -> None:
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))  # type: ignore[no-any-return]


def alexnet() -> nn.Module:
    """AlexNet and ZFNet: large strides, local response normalisation, pooling to a fixed size, dropout."""
    features = [nn.Conv2d(3, 12, 7, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2), nn.Conv2d(12, 16, 3)]
    head = [
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    ]
    return nn.Sequential(*features, nn.ReLU(), *head)


def resnext() -> nn.Module:
    """ResNeXt and Wide ResNet: bottlenecks with grouped convolutions."""
    block = [conv(24, 12, 1), conv(12, 12, 3, groups=4), nn.Conv2d(12, 24, 1, bias=False), nn.BatchNorm2d(24)]
    return Pooled(24, conv(3, 24, 3, 2), Skip(*block), nn.ReLU(), nn.MaxPool2d(2), conv(24, 24))


def preactivation() -> nn.Module:
    """ResNetV2: normalisation before the convolution, ceil_mode pooling of the shortcut."""
    block = [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    down = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    return Pooled(16, nn.Conv2d(3, 16, 3, 2), Skip(*block), down, Skip(*block), nn.BatchNorm2d(16), nn.ReLU())


def squeezenet() -> nn.Module:
    """SqueezeNet: fire modules, a convolution as the classifier."""
    fire = [nn.Conv2d(16, 4, 1), nn.ReLU(), Branches(nn.Conv2d(4, 12, 1), nn.Conv2d(4, 12, 3, padding=1)), nn.ReLU()]
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    head = [nn.Dropout(), nn.Conv2d(24, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), pool, *fire, *head)


def mobilenet_v1() -> nn.Module:
    """MobileNet and Xception: depthwise separable convolutions."""
    return Pooled(
        32, conv(3, 16, 3, 2), conv(16, 16, groups=16), conv(16, 32, 1), conv(32, 32, 3, 2, 32), conv(32, 32, 1)
    )


def _inverted(channels: int, kernel: int, act: type, *inside: nn.Module) -> nn.Module:
    wide = 2 * channels
    ends = [nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)]
    return Skip(conv(channels, wide, 1, act=act), conv(wide, wide, kernel, groups=wide, act=act), *inside, *ends)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2: inverted residuals with linear ends and ReLU6."""
    return Pooled(16, conv(3, 16, 3, 2, act=nn.ReLU6), *(_inverted(16, 3, nn.ReLU6) for _ in range(3)))


def mnasnet() -> nn.Module:
    """MNASNet: inverted residuals with 5x5 kernels."""
    return Pooled(16, conv(3, 16, 3, 2), _inverted(16, 3, nn.ReLU), _inverted(16, 5, nn.ReLU), conv(16, 16, 1))


def efficientnet() -> nn.Module:
    """EfficientNet: inverted residuals with squeeze and excitation and SiLU."""
    blocks = (_inverted(16, kernel, nn.SiLU, SqueezeExcite(32)) for kernel in (3, 5))
    return Pooled(16, conv(3, 16, 3, 2, act=nn.SiLU), *blocks)


def regnet() -> nn.Module:
    """RegNetY: grouped bottlenecks with squeeze and excitation between."""
    block = [conv(24, 24, 1), conv(24, 24, groups=3), SqueezeExcite(24), nn.Conv2d(24, 24, 1, bias=False)]
    return Pooled(24, conv(3, 24, 3, 2), Skip(*block), nn.ReLU(), Skip(*block), nn.ReLU())


def googlenet() -> nn.Module:
    """GoogLeNet: paths side by side, one of them a pooling; channels shifted and scaled inside the graph."""
    pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(16, 4, 1))
    paths = [conv(16, 8, 1), nn.Sequential(conv(16, 6, 1), conv(6, 8)), nn.Sequential(conv(16, 4, 1), conv(4, 4)), pool]

    class Normalised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            parts = [x[:, i : i + 1] * s + m for i, (s, m) in enumerate(((0.46, -0.03), (0.45, -0.09), (0.45, -0.19)))]
            return torch.cat(parts, 1)

    return Pooled(24, Normalised(), conv(3, 16, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True), Branches(*paths))


def inception_v3() -> nn.Module:
    """InceptionV3: 1x7 and 7x1 kernels, average pooling among the paths, a branch that splits once more."""
    long = nn.Sequential(nn.Conv2d(16, 8, (1, 7), padding=(0, 3)), nn.Conv2d(8, 8, (7, 1), padding=(3, 0)), nn.ReLU())
    fork = Branches(nn.Conv2d(8, 6, (1, 3), padding=(0, 1)), nn.Conv2d(8, 6, (3, 1), padding=(1, 0)))
    mean = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(16, 4, 1))
    paths = [conv(16, 8, 1), long, nn.Sequential(conv(16, 8, 1), fork), mean]
    return Pooled(32, conv(3, 16, 3, 2), Branches(*paths))


class Csp(nn.Module):
    """CSPNet and Darknet: half of the channels go around the blocks; Mish and LeakyReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = (
            conv(3, 16, 3, 2, act=nn.LeakyReLU),
            Skip(conv(8, 8, 1, act=nn.Mish), conv(8, 8, act=nn.Mish)),
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        kept, deep = self.stem(x).split(8, 1)
        return self.head(torch.cat([self.block(deep), kept], 1).mean((2, 3)))  # type: ignore[no-any-return]


class Res2(nn.Module):
    """Res2Net: channel groups that each see the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.steps = conv(3, 16, 3, 2), nn.ModuleList(conv(4, 4) for _ in range(3))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(torch.chunk(self.stem(x), 4, 1))
        for i, step in enumerate(self.steps, 1):
            parts[i] = step(parts[i] + parts[i - 1])
        return self.head(torch.cat(parts, 1).amax((2, 3)))  # type: ignore[no-any-return]


class SelectiveKernel(nn.Module):
    """SKNet: a softmax over two kernels' outputs, stacked on a new axis, weighs them for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small, self.large = conv(3, 16, 3, 2), conv(16, 16, 3), conv(16, 16, 5)
        self.choose, self.head = nn.Linear(16, 32), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        both = torch.stack([self.small(y), self.large(y)], 1)
        weights = torch.softmax(self.choose(both.sum(1).mean((2, 3))).view(-1, 2, 16, 1, 1), 1)
        return self.head((both * weights).sum(1).mean((2, 3)))  # type: ignore[no-any-return]


class HighResolution(nn.Module):
    """HRNet and FPN: a fine and a coarse path that exchange, the coarse one brought up by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.fine, self.coarse = conv(3, 8, 3, 2), conv(8, 16, 3, 2), conv(8, 8), conv(16, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        up = F.interpolate(self.coarse(self.down(y)), size=y.shape[2:], mode="bilinear", align_corners=False)
        return self.head(F.relu(self.fine(y) + up).mean((2, 3)))  # type: ignore[no-any-return]


class _StandardisedConv(nn.Conv2d):
    """Weights of mean 0 and variance 1, made so at every call."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(
            x, (self.weight - mean) * torch.rsqrt(variance * 27 + 1e-4), self.bias, self.stride, self.padding
        )


def nfnet() -> nn.Module:
    """NFNet: no batch normalisation; weights standardised at run time, GELU with a gain."""

    class Gain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x) * 1.7015

    block = [Gain(), _StandardisedConv(16, 16, 3, padding=1)]
    return Pooled(16, _StandardisedConv(3, 16, 3, 2, 1), Skip(*block), Skip(*block), Gain())


class Blurred(nn.Module):
    """TResNet and antialiased nets: space to depth by reshapes, a fixed blur after reflecting the border."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(48, 16), nn.Linear(16, CLASSES)
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur", (line[:, None] * line[None]).expand(16, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(F.pixel_unshuffle(x, 4))
        y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), self.blur, stride=2, groups=16)
        return self.head(F.leaky_relu(y, 1e-3).mean((2, 3)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Multi-head attention through one linear layer, by torch's fused function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """ViT and DeiT as timm writes them: one matrix for q, k and v, two tokens, LayerScale, fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.tokens = nn.Conv2d(3, 24, 8, 8), nn.Parameter(torch.randn(1, 2, 24))
        self.positions, self.scale = nn.Parameter(torch.randn(1, 18, 24) * 0.1), nn.Parameter(torch.full((24,), 0.3))
        self.norms = nn.ModuleList(nn.LayerNorm(24, eps=1e-6) for _ in range(3))
        self.attention, self.mlp = _Attention(24, 3), nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.heads = nn.ModuleList(nn.Linear(24, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.tokens.expand(x.shape[0], -1, -1), y], 1) + self.positions
        y = y + self.scale * self.attention(self.norms[0](y))
        y = self.norms[2](y + self.scale * self.mlp(self.norms[1](y)))
        return (self.heads[0](y[:, 0]) + self.heads[1](y[:, 1])) / 2  # type: ignore[no-any-return]


class ClassAttention(nn.Module):
    """CaiT: talking heads (layers across the heads of a softmax), and a class token that alone asks at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token, self.norm = (
            nn.Conv2d(3, 24, 8, 8),
            nn.Parameter(torch.randn(1, 1, 24)),
            nn.LayerNorm(24),
        )
        self.qkv, self.before, self.after = nn.Linear(24, 72), nn.Linear(4, 4), nn.Linear(4, 4)
        self.q, self.kv, self.head = nn.Linear(24, 24), nn.Linear(24, 48), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        n, t, c = y.shape
        q, k, v = self.qkv(self.norm(y)).view(n, t, 3, 4, 6).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.transpose(-2, -1) * 6**-0.5).permute(0, 2, 3, 1)).softmax(-2)
        y = y + (self.after(scores).permute(0, 3, 1, 2) @ v).transpose(1, 2).reshape(n, t, c)
        token = self.token.expand(n, -1, -1)
        k, v = self.kv(torch.cat([token, y], 1)).chunk(2, -1)
        token = token + torch.softmax(self.q(token) @ k.transpose(1, 2) * 24**-0.5, -1) @ v
        return self.head(token[:, 0])  # type: ignore[no-any-return]


class GatedMlp(nn.Module):
    """gMLP: one half of the channels, mixed across the patches, gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.up = nn.Conv2d(3, 24, 8, 8), nn.LayerNorm(24), nn.Linear(24, 48)
        self.inner, self.space, self.down = nn.LayerNorm(24), nn.Conv1d(16, 16, 1), nn.Linear(24, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        u, v = F.gelu(self.up(self.norm(y))).chunk(2, dim=-1)
        return self.head((y + self.down(u * self.space(self.inner(v)))).mean(1))  # type: ignore[no-any-return]


def poolformer() -> nn.Module:
    """PoolFormer: pooling in attention's place, GroupNorm of one group, 1x1 convolutions for the MLP."""

    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x

    mlp = [nn.GroupNorm(1, 16), nn.Conv2d(16, 32, 1), nn.GELU(), nn.Conv2d(32, 16, 1)]
    return Pooled(16, nn.Conv2d(3, 16, 7, 4, 2), Skip(nn.GroupNorm(1, 16), Mixer()), Skip(*mlp))


class WindowsAndGrid(nn.Module):
    """MaxViT: attention inside windows, then across them, over a six-axis view of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms = conv(3, 24, 3, 2, act=nn.GELU), nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.window, self.grid, self.head = _Attention(24, 2), _Attention(24, 2), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = y.shape
        z = self.norms[0](y).view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        y = y + self.window(z).view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)
        z = self.norms[1](y).view(n, 4, h // 4, 4, w // 4, c).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, c)
        z = self.grid(z).view(n, h // 4, w // 4, 4, 4, c).permute(0, 3, 1, 4, 2, 5).reshape(n, h, w, c)
        return self.head((y + z).mean((1, 2)))  # type: ignore[no-any-return]


class PyramidPooling(nn.Module):
    """SPP-Net: means over grids of several sizes, joined; a dense layer over all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8, 3, 2), nn.Linear(8 * (1 + 4 + 16), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(torch.cat([F.adaptive_avg_pool2d(y, n).flatten(1) for n in (1, 2, 4)], 1))  # type: ignore[no-any-return]


class Columns(nn.Module):
    """CRNN: the columns of a convolution's output are the steps of a GRU; its last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rnn, self.head = conv(3, 8, 3, 4), nn.GRU(8 * SIZE // 4, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.stem(x).flatten(1, 2).permute(2, 0, 1))[1][-1])  # type: ignore[no-any-return]


#: Name -> how to make it, for lowering_families.build.
MATRIX: dict[str, Callable[[], nn.Module]] = {
    **FAMILIES,
    "alexnet": alexnet,
    "resnext": resnext,
    "preactivation": preactivation,
    "squeezenet": squeezenet,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mnasnet": mnasnet,
    "efficientnet": efficientnet,
    "regnet": regnet,
    "googlenet": googlenet,
    "inception_v3": inception_v3,
    "csp": Csp,
    "res2": Res2,
    "selective_kernel": SelectiveKernel,
    "high_resolution": HighResolution,
    "nfnet": nfnet,
    "blurred": Blurred,
    "vision_transformer": VisionTransformer,
    "class_attention": ClassAttention,
    "gated_mlp": GatedMlp,
    "poolformer": poolformer,
    "windows_and_grid": WindowsAndGrid,
    "pyramid_pooling": PyramidPooling,
    "columns": Columns,
}
