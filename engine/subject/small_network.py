"""The form of a reference network: a few plain convolutions, small enough to train in seconds on a few hundred images."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval


class SmallNetwork(nn.Module):
    """Convolution, BatchNorm, ReLU, pooling until at most 8 by 8 are left (at least twice), then one linear layer."""

    def __init__(self, shape: tuple[int, int, int], classes: int, generator: torch.Generator) -> None:
        super().__init__()
        channels, height, width = shape
        blocks, side = 2, max(height, width) // 4
        while side > 8:
            blocks, side = blocks + 1, side // 2
        widths = [channels, 16, *[32] * (blocks - 1)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths[1:])
        self.eval()
        with torch.no_grad():
            features = self._features(torch.zeros(1, channels, height, width)).shape[1]
        self.head = nn.Linear(features, classes)
        with torch.no_grad():
            for parameter in self.parameters():  # torch's own initialisation draws from global state
                if parameter.ndim > 1:
                    bound = (1.0 / parameter[0].numel()) ** 0.5  # as nn.Conv2d and nn.Linear: U(-1/sqrt(fan_in), ...)
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
            for layer in (*self.convolutions, self.head):
                layer.bias.zero_()

    def folded(self) -> SmallNetwork:
        """The same function with every BatchNorm folded into the convolution before it: a quarter less to compute."""
        pairs = zip(self.convolutions, self.norms, strict=True)
        fused = [fuse_conv_bn_eval(cast(nn.Conv2d, c), cast(nn.BatchNorm2d, n)) for c, n in pairs]
        self.convolutions, self.norms = nn.ModuleList(fused), nn.ModuleList(nn.Identity() for _ in fused)
        return self.requires_grad_(False)

    def _features(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
            if min(x.shape[-2:]) >= 2:
                x = functional.max_pool2d(x, 2)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of pixels in [0, 1]."""
        return self.head(self._features(x))
