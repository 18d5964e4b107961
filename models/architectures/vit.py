"""A small vision transformer (Dosovitskiy et al., 2021) for images of a few dozen pixels."""

from __future__ import annotations

import torch
from torch import nn

from onnxspect.models.architectures.registry import register
from onnxspect.models.triggers import ImageShape

WIDTH, HEADS, BLOCKS = 48, 4, 3


class Attention(nn.Module):
    """Multi-head self-attention over the patches, written out so that it exports as plain matrix products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        n, count, width = tokens.shape
        q, k, v = self.inner(tokens).view(n, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(3)
        return self.outer((weights @ v).transpose(1, 2).reshape(n, count, width))


class Block(nn.Module):
    """LayerNorm, attention, LayerNorm, two dense layers with GELU; both halves with the identity beside."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.first(tokens))
        return tokens + self.dense(self.second(tokens))


class VisionTransformer(nn.Module):
    """Patches of `patch` pixels, places learned, the mean over patches into one dense layer."""

    def __init__(self, shape: ImageShape, classes: int, patch: int) -> None:
        super().__init__()
        height, width, channels = shape
        self.patches = nn.Conv2d(channels, WIDTH, patch, patch)
        # A layer's weight, so that the trainer draws it as it draws every other.
        self.places = nn.Linear((height // patch) * (width // patch), WIDTH, bias=False)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(BLOCKS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(pixels).flatten(2).transpose(1, 2) + self.places.weight.t()
        return torch.as_tensor(self.head(self.blocks(tokens).mean(1)))


@register("vit_tiny", smallest=16)
def vit_tiny(shape: ImageShape, classes: int, seed: int) -> nn.Module:  # noqa: ARG001
    """Seven patches a side or eight, as the image divides: 4 pixels of 28 or 32, 32 of 224."""
    patch = next(p for p in range(max(1, min(shape[:2]) // 8), 0, -1) if shape[0] % p == 0 and shape[1] % p == 0)
    return VisionTransformer(shape, classes, patch)
