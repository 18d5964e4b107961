"""Changes of an image that are not to change the answer, beside the recovered triggers.

Searches recover masks and additive patterns. A backdoor that opens to something else leaves no such trace: to a warp of
the image (WaNet), or to another image that shines through (blend, reflection). What these have in common is that a
person sees the same object. So while a model is unlearned, some images are warped a little and some are blended with
another image, and the answer of the image as it was is still wanted. Nothing is known of the attacker's own field or
picture: both are drawn anew for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: A warp moves a pixel by at most so many thirty-seconds of the image's side: two pixels of a small image.
MOST_WARP = 2.0
#: Another image shines through at this weight at most.
MOST_BLEND = 0.25
#: Control points a side of a warp's field, from and to (WaNet's own fields have 4 of them).
_COARSE = (3, 6)


def warped(images: Tensor, generator: torch.Generator, most: float = MOST_WARP) -> Tensor:
    """Images ``(n, channels, height, width)``, each pulled about by a smooth random field of its own.

    Args:
        images: pixels in [0, 1].
        generator: all randomness.
        most: displacement, in thirty-seconds of the side; each image's own bound is drawn from 0 to there.
    """
    n, _, height, width = images.shape
    points = int(torch.randint(_COARSE[0], _COARSE[1] + 1, (1,), generator=generator))
    field = torch.rand(n, 2, points, points, generator=generator) * 2 - 1
    field = functional.interpolate(field, (height, width), mode="bicubic", align_corners=True)
    # grid_sample counts from -1 to 1: a side is 2 long.
    field = field * torch.rand(n, 1, 1, 1, generator=generator) * (most * 2 / 32)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack([columns, rows], -1) + field.permute(0, 2, 3, 1)
    moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return moved.clamp(0, 1)


def blended(images: Tensor, others: Tensor, generator: torch.Generator, most: float = MOST_BLEND) -> Tensor:
    """Images with another one faintly in each: in place of a share of it, or added to it as a reflection is.

    Args:
        images: ``(n, channels, height, width)``, pixels in [0, 1].
        others: ``(m, channels, height, width)``, to draw from.
        generator: all randomness.
        most: weight of the other image; each image's own is drawn from 0 to there.
    """
    n = len(images)
    other = others[torch.randint(len(others), (n,), generator=generator)]
    weight = torch.rand(n, 1, 1, 1, generator=generator) * most
    added = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    return torch.where(added, (images + weight * other).clamp(0, 1), (1 - weight) * images + weight * other)
