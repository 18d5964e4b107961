"""Whether an image's answer depends on the other images of its batch, or on how many they are.

A payload need not be in the image that it changes: a maximum over the batch, a batch turned by one, a comparison of its size. Two images
run together; the gradient of the first one's scores to the second one's pixels, in the graph with slopes everywhere
(converters/lowering/relaxed.py), is zero where nothing flows from the one to the other. Where something does, the exact scores say whether
it is seen on clean images (batch normalisation in training mode) or sleeps there. Dynamic quantisation takes its range from the whole batch; it
is told apart by holding these ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.batch_size import LARGEST, Sized, large_enough, sized
from onnxspect.converters.lowering.fixed_batch import GroupedGraphModule
from onnxspect.converters.lowering.ops.quantization import dynamic_quantize
from onnxspect.converters.lowering.program import Program, unchanged
from onnxspect.converters.lowering.relaxed import Relaxed
from onnxspect.converters.lowering.taps import lying_between, results
from onnxspect.converters.proof.tolerances import TOLERANCES
from onnxspect.engine.subject.subject import Subject

#: Other images that the first one is run with; sizes of batches that it is run in. Where a run takes long: fewer.
_OTHERS, _SIZES = 6, (3, 8)
_FEW_OTHERS, _FEW_SIZES = 1, (3,)
#: Batches that are run because the scores hang on their size, at most; the smallest first.
_TRIED = 6
#: Rounding of sums that are taken in another order in a larger batch, as a share of the largest score.
_ROUNDING = 10 * TOLERANCES["float32"]


@dataclass(frozen=True)
class BySize:
    """What the size of a batch does.

    Attributes:
        node: the first value that hangs on it.
        images: how many there were in the batch that changed the most answers; 0 where none that was run changed any.
        moved: share of the answers that it changes.
        leads_to: the class that most of these change to.
    """

    node: fx.Node
    images: int = 0
    moved: float = 0.0
    leads_to: int = -1


@dataclass(frozen=True)
class AcrossBatch:
    """What was found.

    Attributes:
        seen: on clean images an image's scores move with the others of its batch, or with their number.
        ranges: they may, because dynamic quantisation takes its range from the whole batch, and through nothing else that was found.
        through: the first value by which something flows from one image to another otherwise; None for none.
        size: what hangs on how many images the batch has, though no usual batch shows it; None for none.
        looked: a flow that no clean image shows was looked for as well; the memory for it was there.
    """

    seen: bool = False
    ranges: bool = False
    through: fx.Node | None = None
    size: BySize | None = None
    looked: bool = True


def across_batch(subject: Subject, images: np.ndarray, few: bool) -> AcrossBatch:
    """Look at the flow between the images of a batch.

    Args:
        subject: from a file; one that is made for a fixed batch is not looked at.
        images: clean, at least two, ``(n, channels, height, width)`` in [0, 1].
        few: a run takes long: fewer of them. The look for a flow that no clean image shows takes as long as some ten.
    """
    module = subject.graph.module
    if isinstance(module, GroupedGraphModule) or len(images) < 2:
        return AcrossBatch()
    pixels = torch.from_numpy(np.ascontiguousarray(images[: (_FEW_OTHERS if few else _OTHERS) + 1])).to(subject.device)
    with torch.no_grad():
        alone = subject.in_one_pass(pixels[:1])
        moved = max(
            _moved(subject, alone, pixels, others) for others in _batches(len(pixels), _FEW_SIZES if few else _SIZES)
        )
    seen = moved > _ROUNDING * max(1.0, float(alone.abs().max()))
    logits = results(subject.graph)[0]
    between = lying_between(module.graph, logits)
    dynamic = any(n.target is dynamic_quantize for n in between)
    program = Program(module)
    with torch.no_grad():
        one, two = (program.run(subject.spec.encode(pixels[:n]), unchanged, keep=True) for n in (1, 2))
        found = sized(program, logits, one, two)
        size = None if found is None else _by_size(subject, pixels, found)
    together = large_enough(between, program)
    if together > subject.images_at_once:
        return AcrossBatch(seen=seen, ranges=seen and dynamic, size=size, looked=False)
    rows = pixels[torch.arange(together, device=pixels.device) % len(pixels)]

    def flows(end: fx.Node, ranges_held: bool = True) -> bool:
        return _flows(subject, Relaxed(program, end, between, 1.0, ranges_held), rows)

    if not flows(logits):
        ranges = dynamic and (seen or flows(logits, ranges_held=False))
        return AcrossBatch(seen=seen, ranges=ranges, size=size)
    through = next((n for n in between if n.op != "placeholder" and flows(n)), logits)
    return AcrossBatch(seen=seen, through=through, size=size)


def _by_size(subject: Subject, pixels: Tensor, found: Sized) -> BySize:
    """Run batches of the sizes at which the value is another one, of the same images over and over."""
    alone = torch.cat([subject.in_one_pass(p) for p in pixels.split(1)]).argmax(1)
    most = BySize(found.node)
    for images in [n for n in found.sizes if n <= min(LARGEST, subject.images_at_once)][:_TRIED]:
        rows = torch.arange(images, device=pixels.device) % len(pixels)
        answers = subject.in_one_pass(pixels[rows]).argmax(1)
        turned = answers[answers != alone[rows]]
        moved = len(turned) / images
        if moved > most.moved:
            most = BySize(found.node, images, moved, int(turned.mode().values))
    return most


def _batches(count: int, sizes: Sequence[int]) -> list[list[int]]:
    """Places of images: the first with one other, each in turn, and in batches of several sizes."""
    return [[0, i] for i in range(1, count)] + [[j % count for j in range(size)] for size in sizes]


def _moved(subject: Subject, alone: Tensor, pixels: Tensor, places: Sequence[int]) -> float:
    return float((subject.in_one_pass(pixels[list(places)])[:1] - alone).abs().nan_to_num(0.0).max())


def _flows(subject: Subject, relaxed: Relaxed, rows: Tensor) -> bool:
    """Whether the first image's part of a value has a gradient to another image."""
    at = rows.clone().requires_grad_(True)
    with torch.enable_grad():
        value, _ = relaxed.run(subject.spec.encode(at))
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        first = value[0] if value.ndim and value.shape[0] == len(rows) else value
        weights = torch.rand(first.shape, generator=torch.Generator().manual_seed(0)).to(first) + 0.5
        gradient: Tensor | None = torch.autograd.grad((first * weights).sum(), at, allow_unused=True)[0]
    # What all images share and no image makes (a size, a constant) has no gradient to either.
    return gradient is not None and bool((torch.nan_to_num(gradient[1:]) != 0).any())
