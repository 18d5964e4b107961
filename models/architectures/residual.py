"""Residual networks for small images (He et al., 2016), in the widths of RE Fig. 3, and MobileNetV2.

The stem is a 3x3 convolution of stride 1 without pooling, the usual form for 32x32 images.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from onnxspect.models.architectures.registry import register
from onnxspect.models.triggers import ImageShape


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions in parallel with the identity, or with a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_bn(inputs, outputs, 3, stride)
        self.second = _conv_bn(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut: nn.Module = _conv_bn(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inner = self.second(functional.relu(self.first(inputs)))
        return functional.relu(inner + self.shortcut(inputs))


class ResNet(nn.Module):
    """Groups of `BasicBlock`s with the given widths and blocks a group; each but the first group halves the image."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _conv_bn(channels, widths[0], 3)
        layers: list[nn.Module] = []
        before = widths[0]
        for group, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                layers.append(BasicBlock(before, width, 2 if group > 0 and index == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.blocks(functional.relu(self.stem(inputs)))
        return self.head(features.mean(dim=(2, 3)))


@register("resnet18_wide", smallest=8)
def resnet18_wide(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """RE's wide ResNet-18: 64, 128, 256, 512 filters, two blocks a group."""
    return ResNet(shape[2], classes, (64, 128, 256, 512), (2, 2, 2, 2))


@register("resnet18_compact", smallest=8)
def resnet18_compact(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """RE's compact ResNet-18: 16, 32, 64, 64 filters, two blocks a group."""
    return ResNet(shape[2], classes, (16, 32, 64, 64), (2, 2, 2, 2))


@register("resnet34", smallest=8)
def resnet34(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """ResNet-34 (RE sec. 19 on CIFAR-100, DTInspector Table 7)."""
    return ResNet(shape[2], classes, (64, 128, 256, 512), (3, 4, 6, 3))


@register("resnet10_tiny", smallest=8)
def resnet10_tiny(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """One block a group, 8, 16, 32, 32 filters. Not from a paper: a residual graph that a CPU trains in a minute."""
    return ResNet(shape[2], classes, (8, 16, 32, 32), (1, 1, 1, 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., 2018): widen, filter each channel on its own, narrow without ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.widen = _conv_bn(inputs, middle, 1)
        self.filter = _conv_bn(middle, middle, 3, stride, groups=middle)
        self.narrow = _conv_bn(middle, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inner = functional.relu6(self.filter(functional.relu6(self.widen(inputs))))
        outputs = self.narrow(inner)
        return inputs + outputs if self.residual else outputs


class MobileNetV2(nn.Module):
    """Table 2 of Sandler et al. for 32x32 images: the stem and the second group keep the image's size."""

    # expansion, filters, blocks, stride of the first block
    GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv_bn(channels, 32, 3)
        layers: list[nn.Module] = []
        before = 32
        for expansion, width, count, stride in self.GROUPS:
            for index in range(count):
                layers.append(InvertedResidual(before, width, stride if index == 0 else 1, expansion))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.last = _conv_bn(before, 1280, 1)
        self.head = nn.Linear(1280, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.blocks(functional.relu6(self.stem(inputs)))
        return self.head(functional.relu6(self.last(features)).mean(dim=(2, 3)))


@register("mobilenet_v2", smallest=8)
def mobilenet_v2(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """MobileNetV2 for small images (RE sec. 11)."""
    return MobileNetV2(shape[2], classes)
