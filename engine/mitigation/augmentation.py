"""Label-preserving augmentation: changes of an image that must not change the answer, beside the recovered triggers.

Searches recover masks and additive patterns. A backdoor that opens to something else leaves no such trace: to a warp of
the image (WaNet), or to another image that shines through (blend, reflection). And a patch that a search recovers need
not be the attacker's own: other patches, elsewhere, open the same backdoor. What these have in common is that a person
sees the same object. So while a model is unlearned, some images are warped a little, some are blended with another
image, some get a small square, and the label stays. Nothing is known of the attacker's own field, picture or patch:
they are drawn anew for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: A warp moves a pixel by at most so many thirty-seconds of the image's side: two pixels of a small image.
MOST_WARP = 2.0
#: The weight of the other image in a blend, at most.
MOST_BLEND = 0.25
#: Side of a square, in thirty-seconds of the image's: 3 to 6 pixels of a small image.
SQUARE = (3, 6)
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


def squared(images: Tensor, generator: torch.Generator, sides: tuple[int, int] = SQUARE) -> Tensor:
    """Images ``(n, channels, height, width)``, each with a square at a place of its own: white, black, one colour or a chessboard.

    Args:
        images: pixels in [0, 1].
        generator: all randomness.
        sides: least and greatest side, in thirty-seconds of the image's smaller one.
    """
    channels, height, width = images.shape[1:]
    changed = images.clone()
    for image in changed:
        thirty_seconds = int(torch.randint(sides[0], sides[1] + 1, (1,), generator=generator))
        side = max(1, round(thirty_seconds * min(height, width) / 32))
        top = int(torch.randint(height - side + 1, (1,), generator=generator))
        left = int(torch.randint(width - side + 1, (1,), generator=generator))
        colours = torch.randint(2, (2, channels, 1, 1), generator=generator).to(images.dtype)
        even = int(torch.randint(4, (1,), generator=generator))
        if even < 2:
            colours[:] = even  # white and black are what attackers use most
        elif even == 2:
            colours[1] = colours[0]
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        image[:, top : top + side, left : left + side] = torch.where((rows + columns) % 2 == 0, colours[0], colours[1])
    return changed
