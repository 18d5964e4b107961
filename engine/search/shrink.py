"""A trigger's mask made smaller as long as a dormant part of the graph stays awake: from the edges, then by blocks, then by pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from onnxspect.engine.search.dormant_part import DormantPart
from onnxspect.engine.trigger import MASK, PATTERN, stamp

#: Images on which the part must stay awake.
_IMAGES = 4
#: Runs of the part at most.
_MOST = 700
#: How far awake it must stay, as a share of what it was under the whole mask.
_STAYS = 0.5
#: Levels of a byte.
_LEVELS = 255


def shrunk(part: DormantPart, images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mask and pattern of a trigger that wakes the part as well.

    Args:
        part: that is woken.
        images: clean, ``(n, channels, height, width)`` in [0, 1].
        arrays: the trigger's `mask` ``(1, height, width)``, zeros and ones, and `pattern`.

    Returns:
        the mask, a part of the given one, and the pattern, in levels of a byte where that does not put the part to sleep.
    """
    shrinking = _Shrinking(part, images[:_IMAGES], arrays)
    levels = np.round(arrays[PATTERN] * _LEVELS).astype(np.float32) / np.float32(_LEVELS)
    if shrinking.awake(shrinking.mask, levels):
        shrinking.pattern = levels
    shrinking.crop()
    side = max(1, 1 << (max(shrinking.mask.shape) // 4).bit_length() - 1)
    while side and shrinking.left > 0:
        shrinking.blocks(side)
        side //= 2
    # What is not under the mask is no part of the trigger.
    pattern = np.where(shrinking.mask[None] > 0, shrinking.pattern, 0).astype(np.float32)
    return {MASK: shrinking.mask[None].astype(np.float32), PATTERN: pattern}


class _Shrinking:
    """A mask ``(height, width)`` on its way."""

    def __init__(self, part: DormantPart, images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        self.part, self.images = part, images
        self.mask, self.pattern = arrays[MASK][0] > 0, arrays[PATTERN]
        # Where most of the graph is run for every look, fewer are taken.
        self.left = int(_MOST * min(1.0, max(0.1, 0.1 / max(part.share, 1e-9))))
        self.enough = _STAYS * self._distance(self.mask, self.pattern)

    def _distance(self, mask: np.ndarray, pattern: np.ndarray) -> np.ndarray:
        self.left -= 1
        stamped = stamp(self.images, {MASK: mask[None].astype(np.float32), PATTERN: pattern})
        return self.part.woken(torch.from_numpy(stamped).to(self.part.subject.device)).cpu().numpy()

    def awake(self, mask: np.ndarray, pattern: np.ndarray | None = None) -> bool:
        """Whether the part is, on every image."""
        distance = self._distance(mask, self.pattern if pattern is None else pattern)
        return bool(((distance >= self.enough) & (distance > 0)).all())

    def crop(self) -> None:
        """Take away as many rows and columns as go, from every side."""
        for axis in (0, 1):
            for end in (False, True):
                low, high = 0, self.mask.shape[axis]
                while low < high and self.left > 0:
                    middle = (low + high + 1) // 2
                    if self.awake(self._without(axis, end, middle)):
                        low = middle
                    else:
                        high = middle - 1
                self.mask = self._without(axis, end, low)

    def _without(self, axis: int, end: bool, count: int) -> np.ndarray:
        mask = self.mask.copy()
        lines = mask if axis == 0 else mask.T  # a view
        lines[len(lines) - count if end else 0 : len(lines) if end else count] = False
        return mask

    def blocks(self, side: int) -> None:
        """Take away the squares of a side that go, one after the other."""
        height, width = self.mask.shape
        for row in range(0, height, side):
            for column in range(0, width, side):
                square = (slice(row, row + side), slice(column, column + side))
                if self.left <= 0 or not self.mask[square].any():
                    continue
                without = self.mask.copy()
                without[square] = False
                if self.awake(without):
                    self.mask = without
