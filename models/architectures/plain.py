"""Feed-forward convolutional networks without branches.

NC's tables of layers (appendix, Tables VII and VIII) are missing from the text we have; the layers are those of its
published appendix. Softmax is left to the loss everywhere: files end in logits.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from onnxspect.models.architectures.registry import register
from onnxspect.models.triggers import ImageShape


def conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    """A 3x3 "same" convolution, BatchNorm and ReLU."""
    # The bias would only be subtracted again by the BatchNorm.
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def conv_relu(inputs: int, outputs: int) -> list[nn.Module]:
    """A 3x3 "same" convolution and ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]


def _blocks(channels: int, *widths: int) -> list[nn.Module]:
    """Blocks of convolution, BatchNorm and ReLU of these widths; 0 is a pooling by two."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += conv_bn_relu(channels, width) if width else [nn.MaxPool2d(2)]
        channels = width or channels
    return layers


def _dense(*widths: int) -> list[nn.Module]:
    """The image as a vector and dense layers from width to width, ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


@register("compact_cnn", smallest=8)
def compact_cnn(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """The shipped pair's network: three conv-BN-ReLU blocks with pooling and one hidden dense layer.

    Not from a paper: sized so that a file stays at a few hundred kilobytes (28x28x1: 75,482 parameters).
    """
    height, width, channels = shape
    return nn.Sequential(
        *_blocks(channels, 16, 0, 32, 0, 48, 0),
        *_dense(48 * (height // 8) * (width // 8), 128, classes),
    )


@register("nc_mnist", smallest=16)
def nc_mnist(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """NC Table VII (and BadNets): 5x5 convolutions 16 and 32 without padding, each pooled; dense 512."""
    height, width, channels = shape
    rows, cols = ((size - 4) // 2 for size in (height, width))
    rows, cols = ((size - 4) // 2 for size in (rows, cols))
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *_dense(32 * rows * cols, 512, classes),
    )


@register("nc_gtsrb", smallest=8)
def nc_gtsrb(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """NC Table VIII: pairs of 3x3 convolutions 32, 64, 128, pooled after each pair; dense 512.

    Departure: every convolution keeps the size ("same"), so that 28x28 images fit too.
    """
    height, width, channels = shape
    return nn.Sequential(
        *conv_relu(channels, 32),
        *conv_relu(32, 32),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        *conv_relu(32, 64),
        *conv_relu(64, 64),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        *conv_relu(64, 128),
        *conv_relu(128, 128),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(128 * (height // 8) * (width // 8), 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, classes),
    )


@register("lenet5", smallest=12)
def lenet5(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """LeNet-5 (LeCun et al., 1998; RE sec. 19 on MNIST): 5x5 convolutions 6 and 16, dense 120 and 84.

    Departures, as in today's use of the name: ReLU and maximum pooling for tanh and the trainable average.
    """
    height, width, channels = shape
    rows, cols = ((size // 2 - 4) // 2 for size in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *_dense(16 * rows * cols, 120, 84, classes),
    )


@register("vgg9", smallest=16)
def vgg9(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """RE sec. 19.1: VGG-11 less its last two convolutions, filters 16, 32, 64, 64, 128, 128, then three dense layers.

    RE names neither the dense widths (here 128) nor whether it is VGG's variant with BatchNorm (here yes).
    """
    height, width, channels = shape
    return nn.Sequential(
        *_blocks(channels, 16, 0, 32, 0, 64, 64, 0, 128, 128, 0),
        *_dense(128 * (height // 16) * (width // 16), 128, 128, classes),
    )


@register("cifar_cnn", smallest=8)
def cifar_cnn(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """DTInspector Table 7's CIFAR-10 classifier: six convolutions and two dense layers.

    The table gives no widths; here 32, 32, 64, 64, 128, 128 with BatchNorm, and 256.
    """
    height, width, channels = shape
    return nn.Sequential(
        *_blocks(channels, 32, 32, 0, 64, 64, 0, 128, 128, 0),
        *_dense(128 * (height // 8) * (width // 8), 256, classes),
    )
