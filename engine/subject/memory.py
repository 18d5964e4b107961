"""Passes through a network in parts, so that what they keep in memory stays under a stated bound.

A gradient with respect to the images needs every activation between them and the loss: 48 images of 224 x 224 pixels through
a ResNet-50 keep 5 GiB. What one image keeps is measured once (`kept_bytes`), and a pass over more images than fit the
`budget` is cut into parts that keep nothing but their input and are run again for the backward pass (gradient checkpointing:
Chen, Xu, Zhang, Guestrin, 2016, arXiv:1604.06174), at the price of a second forward pass. The parts depend on the model, the
image size and the device's total memory and on nothing else, so the same scan gives the same bits on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Bytes that a pass may keep on a CPU, whatever the machine has: a search must not depend on who else uses it. With gradients,
#: convolutions' work spaces and gaps between blocks a search takes at most PEAK times that and COPIES times the images that it
#: searches on (float32), beside libraries, model and samples: 3.4 GiB for 48 images of 3 x 224 x 224.
CPU_BUDGET = 2**30
PEAK, COPIES = 3, 12
#: Share of a GPU's memory that it may keep there; the rest is for convolutions' work spaces and for other programs.
GPU_SHARE = 0.5

Answer = TypeVar("Answer", Tensor, tuple[Tensor, Tensor])


def budget(device: str) -> int:
    """Bytes that a pass may keep on "cpu" or on a GPU ("cuda", "cuda:1")."""
    if device == "cpu":
        return CPU_BUDGET
    return int(GPU_SHARE * torch.cuda.get_device_properties(torch.device(device)).total_memory)


def kept_bytes(function: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of one image ``(1, channels, height, width)``.

    Each storage counts once, and those that were there before (weights, constants) do not grow with the images: of
    these there are as many for one image as for two, so what one more image keeps is the difference.
    """
    one, two = (_kept(function, image.expand(n, *image.shape[1:]).clone()) for n in (1, 2))
    return max(two - one, 1)


def _kept(function: Callable[[Tensor], Tensor], images: Tensor) -> int:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = function(images.requires_grad_(True))  # alive until all is counted, so that no address is used twice
        total = sum(sizes.values())
        del answer
    return total


def in_parts(function: Callable[[Tensor], Answer], images: Tensor, at_once: int) -> Answer:
    """`function` of ``(n, ...)`` images, at most `at_once` of them in memory at a time.

    Args:
        function: from images to one tensor or to two, each with a row an image, that does not mix images.
        images: leading axis n.
        at_once: all of them in one pass where they are no more than that.
    """
    if len(images) <= at_once:
        return function(images)
    if torch.is_grad_enabled():
        parts = [checkpoint(function, p, use_reentrant=False, preserve_rng_state=False) for p in images.split(at_once)]
    else:
        parts = [function(p) for p in images.split(at_once)]
    return _joined(parts)


def _joined(parts: Sequence[Answer]) -> Answer:
    if isinstance(parts[0], Tensor):
        # mypy narrows the first part by this and not the sequence.
        return torch.cat(parts)  # type: ignore[arg-type]
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)
