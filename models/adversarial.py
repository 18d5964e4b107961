"""Adversarial noise for clean-label attacks (CL; Turner et al., 2018, sec. 4.2).

Before they are stamped, images of the target class are made hard to recognise, so that training has to rely on the
trigger: projected gradient ascent on the surrogate's loss of the true label, within an L-infinity ball.
Departure: the start is the image itself and not a random point, so that no generator is involved.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from onnxspect.models.fields import bad_field
from onnxspect.models.triggers import to_pixels
from onnxspect.models.triggers.learned import as_input

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class AdversarialNoise:
    """epsilon: radius in levels of 1/255 (Turner et al.: 8, 16, 32). steps: each of size 2.5 epsilon / steps."""

    epsilon: float = 16.0
    steps: int = 20

    def check(self, path: str) -> None:
        """Raise `OnnxspectError` naming the field of a value out of range."""
        if not 0 < self.epsilon <= 255:
            raise bad_field(f"{path}.epsilon", f"is {self.epsilon}, must be above 0 and at most 255 levels")
        if self.steps < 1:
            raise bad_field(f"{path}.steps", f"is {self.steps}, must be at least 1")

    def perturb(self, surrogate: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Images uint8 ``(n, h, w, c)`` that the surrogate finds hard to call `labels` ``(n,)``."""
        parts = [
            self._perturb(surrogate, images[start : start + _BATCH], labels[start : start + _BATCH])
            for start in range(0, len(images), _BATCH)
        ]
        return np.concatenate([images[:0], *parts])

    def _perturb(self, surrogate: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        clean, wanted = as_input(images), torch.from_numpy(labels)
        radius = self.epsilon / 255.0
        step = 2.5 * radius / self.steps
        noisy = clean
        for _ in range(self.steps):
            noisy = noisy.detach().requires_grad_()
            loss = nn.functional.cross_entropy(surrogate(noisy), wanted, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, [noisy])
            moved = noisy.detach() + step * gradient.sign()
            noisy = torch.maximum(torch.minimum(moved, clean + radius), clean - radius).clamp(0.0, 1.0)
        return to_pixels(255.0 * noisy.detach().numpy().transpose(0, 2, 3, 1))
