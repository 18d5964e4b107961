"""Windows of a picture that are filled with an opaque pattern, many of them side by side: where is a small patch enough?

A search for a mask (Neural Cleanse) lets every pixel be changed a little and ends in one of many minima; most of them resemble no patch. Here
place and size are given and only the content is free, so that nothing has to be traded off against a cost, and every place is tried. The
windows of one unit share its images, and are searched in the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.search.objective import Loss, Measured, Objective, cross_entropy, laid_out
from onnxspect.engine.search.perturbation import State
from onnxspect.engine.subject.subject import Subject

#: (top, left) of a window.
Place = tuple[int, int]


@dataclass(frozen=True)
class FillWindows(Objective):
    """Every window of a unit by itself leads the unit's images to its target as well as it can.

    The content is ``sigmoid(w)`` of free variables, which begin at mid-grey or where an earlier search has left them. All windows are of one
    side; none has a cost. The loss of a unit is the sum over its windows, whose gradients do not meet.

    Attributes:
        side: of a window, in pixels.
        places: where they are.
        loss: ``(logits (unit, n, classes), targets (unit,)) -> (unit, n)``.
        begin: contents to begin with, ``(place, channels, side, side)``, as free variables.
    """

    side: int
    places: tuple[Place, ...]
    loss: Loss = cross_entropy
    begin: np.ndarray | None = field(default=None, compare=False, repr=False)

    def parts(self, most: int) -> list[FillWindows]:
        """The same windows, at most so many in each part, in order."""
        cuts = range(0, len(self.places), most)
        begun = self.begin
        return [
            replace(self, places=self.places[i : i + most], begin=None if begun is None else begun[i : i + most])
            for i in cuts
        ]

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """``(unit, place, channels, side, side)``: no draw, the images are all that units differ by."""
        shape = (len(generators), len(self.places), images.shape[2], self.side, self.side)
        if self.begin is None:
            return {"content": torch.zeros(shape)}
        return {"content": torch.from_numpy(self.begin)[None].expand(shape).clone()}

    def constants(self, subject: Subject, images: Tensor) -> State:
        """Which pixels of a picture, counted row by row, each window covers ``(unit, place, side * side)``."""
        within = np.arange(self.side)
        corners = np.array(self.places)
        rows, columns = corners[:, :1] + within, corners[:, 1:] + within
        pixels = (rows[:, :, None] * images.shape[-1] + columns[:, None]).reshape(1, len(corners), -1)
        return {"pixels": torch.from_numpy(pixels).to(images.device).expand(len(images), -1, -1)}

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """The sum of the windows' mean losses, also as what is to be least; the best window's share of images that reach the target."""
        loss, success = self.each(subject, state, constants, images, targets)
        return Measured(loss.sum(1), loss.detach().sum(1), success.amax(1))

    def each(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(mean loss, share of images that reach the target) of every window ``(unit, place)``."""
        units, n, channels, height, width = images.shape
        count = len(self.places)
        content = torch.sigmoid(state["content"]).flatten(-2)[:, :, None].expand(-1, -1, n, -1, -1)
        where = constants["pixels"][:, :, None, None].expand_as(content)
        plain = images.flatten(-2)[:, None].expand(-1, count, -1, -1, -1)
        filled = plain.scatter(-1, where, content).view(-1, channels, height, width)
        logits = subject(laid_out(filled)).view(units * count, n, -1)
        aims = targets.repeat_interleave(count)
        loss = self.loss(logits, aims).mean(1)
        success = (logits.detach().argmax(2) == aims[:, None]).float().mean(1)
        return loss.view(units, count), success.view(units, count)

    def trigger(self, state: State) -> dict[str, Tensor]:
        """`content`, as free variables: a next search may begin with it."""
        return dict(state)


def shortfall(logits: Tensor, targets: Tensor) -> Tensor:
    """By how much each unit's target falls short of the best other class ``(unit, n)``, of logits ``(unit, n, classes)``.

    The cross-entropy that is left says nothing more once all images are there; this goes on falling.
    """
    at = targets[:, None, None].expand(-1, logits.shape[1], 1)
    return logits.scatter(2, at, -torch.inf).amax(2) - logits.gather(2, at)[..., 0]


def everywhere(size: tuple[int, int], side: int) -> tuple[Place, ...]:
    """Places half a window apart, to the edges of pictures of that size (height, width)."""
    apart = (side + 1) // 2
    rows, columns = (sorted({*range(0, most - side + 1, apart), most - side}) for most in size)
    return tuple((r, c) for r in rows for c in columns)


def around(places: Sequence[Place], size: tuple[int, int], side: int, apart: int, steps: int = 1) -> tuple[Place, ...]:
    """The places themselves and those that are up to so many steps of so many pixels away, within pictures of that size."""
    moves = [apart * i for i in range(-steps, steps + 1)]
    height, width = size
    return tuple(
        sorted(
            {
                (min(max(r + dr, 0), height - side), min(max(c + dc, 0), width - side))
                for r, c in places
                for dr in moves
                for dc in moves
            }
        )
    )


def stamped(place: Place, content: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """A window as `mask` ``(1, height, width)`` and `pattern` ``(channels, height, width)`` of a trigger.

    Args:
        place: of it.
        content: free variables ``(channels, side, side)``.
        size: of the pictures (height, width).
    """
    (top, left), side = place, content.shape[-1]
    inside = np.s_[:, top : top + side, left : left + side]
    mask, pattern = np.zeros((1, *size), np.float32), np.zeros((len(content), *size), np.float32)
    mask[inside] = 1
    pattern[inside] = 1 / (1 + np.exp(-content))
    return {"mask": mask, "pattern": pattern}
