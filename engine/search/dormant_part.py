"""A dormant part of a subject's graph as a function of pixels: how far it wakes, with slopes, and what the subject answers without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.fixed_batch import GroupedGraphModule, group_size
from onnxspect.converters.lowering.observation import producer
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program
from onnxspect.converters.lowering.regimes import continued
from onnxspect.converters.lowering.relaxed import Relaxed
from onnxspect.converters.lowering.taps import lying_between, results
from onnxspect.engine.subject.class_scores import class_scores
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.subject import Subject

#: Of a place of many elements, how near to the nearest one those are that its slope is made of, as a share of their range.
_NEAREST = 0.05
_NO_OPERANDS: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
#: Images a run where answers are asked for.
_AT_ONCE = 32
#: In place of the class of an image that the graph does not run on.
NO_ANSWER = -1


class DormantPart:
    """One dormant value of a subject, between pixels and answers.

    Args:
        subject: whose file has the part.
        place: where it is in the torch graph.
        leak: the least slope of what saturates (relaxed.py).
    """

    def __init__(self, subject: Subject, place: Place, leak: float) -> None:
        module = subject.graph.module
        self.subject, self.place = subject, place
        self._logits = results(subject.graph)[0]
        between = lying_between(module.graph, self._logits)
        self._program = Program(module)
        self._relaxed = Relaxed(self._program, place.node, between, leak)
        #: Images of one run, where the file fixes them; None where any number goes.
        self.rows = group_size(module) if isinstance(module, GroupedGraphModule) else None
        #: Share of the graph's nodes that the part is computed by.
        self.share = self._relaxed.steps / max(1, len(self._program.steps))
        self._usual: tuple[np.ndarray, np.ndarray] | None = None
        self.is_decision = place.usual.dtype == torch.bool

    def woken(self, pixels: Tensor, direction: float = 0.0) -> Tensor:
        """How far the part is from its usual value, by image ``(n,)``; 0 where it sleeps.

        Args:
            pixels: ``(n, channels, height, width)`` in [0, 1].
            direction: 1 counts what lies above the usual value, -1 what lies below, 0 both. Of a decision, how many elements are turned.
        """
        parts = [self._relaxed.exact(self.subject.spec.encode(p)) for p in self._runs(pixels)]
        return torch.cat(
            [self._distance(v, len(p), direction) for v, p in zip(parts, self._runs(pixels), strict=True)]
        )[: len(pixels)]

    def slopes(self, pixels: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """(how far it is from its usual value ``(n,)``, the gradient of that to `pixels`), with slopes everywhere.

        Args:
            pixels: ``(n, channels, height, width)`` in [0, 1].
            direction: 1 or -1 by image ``(n,)``; which way to go from the usual value. A decision knows its own.
        """
        distances, gradients = [], []
        for part, way in zip(self._runs(pixels), self._runs(direction), strict=True):
            at = part.detach().requires_grad_(True)
            with torch.enable_grad():
                value, exact = self._relaxed.run(self.subject.spec.encode(at))
                distances.append(self._distance(exact, len(part), way))
                towards = self._signed(value, way)
                (gradient,) = (
                    torch.autograd.grad(towards.sum(), at, allow_unused=True) if towards.requires_grad else (None,)
                )
            gradients.append(torch.zeros_like(part) if gradient is None else torch.nan_to_num(gradient, 0.0, 0.0, 0.0))
        return torch.cat(distances)[: len(pixels)], torch.cat(gradients)[: len(pixels)]

    def answers(self, pixels: np.ndarray, asleep: bool = False) -> np.ndarray:
        """Classes ``(n,)`` that the torch graph answers; NO_ANSWER to an image that it does not run on (an index out of range).

        Args:
            pixels: ``(n, channels, height, width)`` in [0, 1].
            asleep: the part keeps its usual value, whatever the image is.
        """

        place, given = self.place, [_NO_OPERANDS]
        end = place.node if place.through is None else place.through

        def look(node: fx.Node, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if node is producer(end):
                given[0] = args, kwargs
            if not asleep or node is not end or not isinstance(result, Tensor):
                return result
            return place.held(result) if place.through is None else continued(place, *given[0])

        def run(images: Tensor) -> Tensor:
            try:
                env = self._program.run(self.subject.spec.encode(images), look)
                return class_scores(env[self._logits], self.subject.logits).argmax(1).cpu()
            except Exception:  # what wakes a part need not fit what follows: each operator has its own error
                if len(images) > (self.rows or 1):
                    return torch.cat([run(p) for p in images.split(self.rows or 1)])
                return torch.full((len(images),), NO_ANSWER)

        with torch.no_grad(), judging():
            pixels_of_run = self._runs(torch.from_numpy(np.ascontiguousarray(pixels)).to(self.subject.device), _AT_ONCE)
            found = [run(part) for part in pixels_of_run]
        return torch.cat(found).numpy()[: len(pixels)] if found else np.zeros(0, np.int64)

    def usual_answers(self, images: np.ndarray) -> np.ndarray:
        """The same to clean images; of those that were asked for last it is known."""
        if self._usual is None or self._usual[0] is not images:
            self._usual = images, self.answers(images)
        return self._usual[1]

    def missing(self, pixels: Tensor) -> Tensor:
        """How far the operands of the part's node are from turning it, by image ``(n,)``: of a comparison, the distance of the two."""
        operands: list[tuple[Any, ...]] = []

        def look(node: fx.Node, result: Any, args: tuple[Any, ...], __: Any) -> Any:
            if node is self.place.node:
                operands.append(args)
            return result

        found = []
        with torch.no_grad():
            for part in self._runs(pixels):
                operands.clear()
                self._program.run(self.subject.spec.encode(part), look, until=self.place.node)
                numbers = [a for a in operands[0] if isinstance(a, Tensor) and a.dtype != torch.bool]
                if not numbers:
                    return torch.zeros(len(pixels), device=pixels.device)
                away = numbers[0].double() - (numbers[1].double() if len(numbers) > 1 else 0.0)
                found.append(self._by_image(away, len(part)).abs().sum(1))
        return torch.cat(found)[: len(pixels)]

    def _runs(self, rows: Tensor, most: int = 1 << 30) -> list[Tensor]:
        """The rows in parts that one run takes; the last one filled up with its last row."""
        step = self.rows or most
        parts = list(rows.split(step))
        if self.rows and parts and len(parts[-1]) < self.rows:
            last = parts[-1]
            parts[-1] = torch.cat([last, last[-1:].expand(self.rows - len(last), *last.shape[1:])])
        return parts

    def _by_image(self, value: Tensor, images: int) -> Tensor:
        """What a value of several images is of each, ``(n, elements)``: of one that has no rows, the same for all."""
        if value.ndim and value.shape[0] == images:
            return value.reshape(images, -1)
        return value.reshape(1, -1).expand(images, -1)

    def _distance(self, exact: Tensor, images: int, direction: Any) -> Tensor:
        value, usual, asleep = (self._by_image(x, images) for x in (exact, self.place.usual, self.place.asleep))
        if value.shape[1] != usual.shape[1]:
            return torch.zeros(images, device=value.device)
        if self.is_decision:
            return ((value != usual) & asleep).sum(1).float()
        away = torch.nan_to_num(value.double() - usual.double(), 0.0) * asleep
        direction = self.place.side or direction
        way = torch.as_tensor(direction, device=value.device, dtype=torch.float64).reshape(-1, 1)
        beyond = torch.where(way == 0, away.abs(), (away * way).clamp_min(0))
        # Beyond a limit one place is enough, wherever it is.
        return (beyond.amax(1) if self.place.side else beyond.sum(1)).float()

    def _signed(self, value: Tensor, direction: Tensor) -> Tensor:
        images = len(direction)
        rows, usual, asleep = (self._by_image(x, images) for x in (value, self.place.usual, self.place.asleep))
        if rows.shape[1] != usual.shape[1]:
            return torch.zeros(images)
        ways = 1 - 2 * usual.float() if self.is_decision else self.place.side or direction[:, None].to(rows.dtype)
        towards = rows * ways * asleep
        if self.place.side:  # of many places those are heard that are nearest
            reached = towards.detach()
            high = reached.masked_fill(~asleep, -torch.inf).amax(1, keepdim=True)
            low = reached.masked_fill(~asleep, torch.inf).amin(1, keepdim=True)
            heat = (reached - high).masked_fill(~asleep, -torch.inf) / (_NEAREST * (high - low) + 1e-9)
            towards = towards * torch.softmax(heat, 1)
        return towards.sum(1)
