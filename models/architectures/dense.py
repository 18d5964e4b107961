"""DenseNet-BC (Huang et al., 2017): each layer sees the feature maps of all layers before it in its block."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from onnxspect.models.architectures.registry import register
from onnxspect.models.triggers import ImageShape


class DenseLayer(nn.Module):
    """BN-ReLU-1x1 (to four times the growth), BN-ReLU-3x3; its output is appended to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(inputs)
        self.conv_1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(4 * growth)
        self.conv_2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inner = self.conv_1(functional.relu(self.norm_1(inputs)))
        return torch.cat([inputs, self.conv_2(functional.relu(self.norm_2(inner)))], dim=1)


class Transition(nn.Module):
    """BN-ReLU-1x1 to half the channels, then 2x2 average pooling."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(inputs))), 2)


class DenseNet(nn.Module):
    """A 3x3 stem of twice the growth, dense blocks with transitions between, global average pooling."""

    def __init__(self, channels: int, classes: int, growth: int, blocks: tuple[int, ...], stem_stride: int = 1) -> None:
        super().__init__()
        width = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stem_stride, padding=1, bias=False)]
        for number, count in enumerate(blocks):
            if number > 0:
                layers.append(Transition(width))
                width //= 2
            for _ in range(count):
                layers.append(DenseLayer(width, growth))
                width += growth
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.norm(self.blocks(inputs)))
        return self.head(features.mean(dim=(2, 3)))


@register("densenet", smallest=8)
def densenet(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """DenseNet-BC of 100 layers, growth 12, for small images (RE sec. 11)."""
    return DenseNet(shape[2], classes, 12, (16, 16, 16))


@register("densenet_tiny", smallest=8)
def densenet_tiny(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """Three layers a block, growth 8, stem of stride 2. Not from a paper: a dense graph that a CPU trains quickly."""
    return DenseNet(shape[2], classes, 8, (3, 3, 3), stem_stride=2)
