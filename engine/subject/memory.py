"""How much is computed at a time, so that memory cannot run out: on a CPU under a stated bound, on a GPU within what it has.

A gradient with respect to the images needs every activation between them and the loss: 48 images of 224 x 224 pixels through
a ResNet-50 keep 5 GiB. What one image keeps is measured once (`kept_bytes`), and a pass over more images than fit the
`budget` is cut into parts that keep nothing but their input and are run again for the backward pass (gradient checkpointing:
Chen et al., 2016), at the cost of a second forward pass.

`plan_memory` says how many units are searched together and how many images go through the network in one part. It is a pure
function of the model, the images and the memory that may be used, so the same scan gives the same bits on the same machine.
If the allocator refuses all the same, because other programs have taken what was there, `shrink` halves the device's share,
the work is planned anew, and the share goes into the ledger, so that a resumed scan plans as this one did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Bytes that a pass may keep on a CPU, whatever the machine has: a search must not depend on who else uses it. With gradients,
#: convolutions' work spaces and gaps between blocks a search takes at most PEAK times that and COPIES times the images that it
#: searches on (float32), beside libraries, model and samples: 3.4 GiB for 48 images of 3 x 224 x 224.
CPU_BUDGET = 2**30
PEAK, COPIES = 3, 12
#: Share of a GPU's memory that activations may keep there; the rest is for images, work spaces, weights and other programs.
GPU_SHARE = 0.5
#: Share of a GPU's memory for the images in flight with their copies (gathered, perturbed, encoded, their gradients).
IMAGE_SHARE = 0.25
#: What a unit's own state takes, in images: mask and pattern, the best of them, two moments, gradients.
STATE_IMAGES = 16
#: More images at a time make a GPU no faster.
IN_FLIGHT = 8192

Answer = TypeVar("Answer", Tensor, tuple[Tensor, Tensor])

#: Device -> the part of its memory that is planned with, where it is not the whole; halved by `shrink`.
_share: dict[str, float] = {}
_listeners: list[Callable[[str, float], None]] = []


def total_memory(device: str) -> int:
    """Bytes of a GPU ("cuda", "cuda:1") that are planned with: all of it, times the share that `shrink` has left."""
    properties = torch.cuda.get_device_properties(torch.device(device))
    return int(_planned_share(device) * properties.total_memory)


def _planned_share(device: str) -> float:
    """Of one GPU's memory; where all are used, what is left of "cuda" holds for each."""
    return _share.get(device, _share.get(device.partition(":")[0], 1.0))


def devices_of(device: str) -> tuple[str, ...]:
    """The GPUs that "cuda" stands for, itself first and the others by number; any other device is one.

    Those of another kind than the first are left out: results would depend on which of them a batch is dealt to.
    """
    count = torch.cuda.device_count() if device == "cuda" else 1
    alike = (i for i in range(1, count) if torch.cuda.get_device_name(i) == torch.cuda.get_device_name(0))
    return (device, *(f"cuda:{i}" for i in alike))


def searches_at_once(kept: int, image: int, samples: int) -> int:
    """How many units may be searched side by side on a CPU, so that they take no more than one of a large network may.

    Args:
        kept: bytes of activations that one image keeps for the backward pass.
        image: bytes of one image in float32.
        samples: images that a unit is searched on.
    """
    each = samples * (PEAK * kept + COPIES * image)
    return max(1, PEAK * CPU_BUDGET // max(1, each))


def budget(device: str) -> int:
    """Bytes that the activations of a pass may keep on "cpu" or on a GPU."""
    if device == "cpu":
        return int(_planned_share(device) * CPU_BUDGET)
    return int(GPU_SHARE * total_memory(device))


@dataclass(frozen=True)
class MemoryPlan:
    """How much is computed at a time.

    Attributes:
        units: searched together; a power of two, so that a batch that had to be halved is cut where a smaller plan cuts.
        images: that go through the network in one part.
    """

    units: int
    images: int


def plan_memory(memory: int, kept: int, image: int, samples: int) -> MemoryPlan:
    """The plan for a GPU.

    Args:
        memory: bytes that may be planned with.
        kept: bytes of activations that one image keeps for the backward pass.
        image: bytes of one image in float32.
        samples: images that a unit is searched on.
    """
    at_once = max(1, int(GPU_SHARE * memory) // max(1, kept))
    per_unit = (COPIES * samples + STATE_IMAGES) * image
    fitting = int(IMAGE_SHARE * memory) // max(1, per_unit)
    # No more images in flight than one part takes: every further part costs its forward pass twice.
    in_flight = min(IN_FLIGHT, at_once) // max(1, samples)
    return MemoryPlan(_power_of_two(min(fitting, in_flight)), at_once)


def _power_of_two(most: int) -> int:
    """The largest power of two that is no more than `most`, at least one."""
    return 1 << max(0, most.bit_length() - 1) if most > 0 else 1


def smaller_batch(units: int) -> int:
    """The size that a batch of so many units is cut to when it did not fit: the next smaller power of two, at least one."""
    return _power_of_two(units - 1)


def shrink(device: str) -> float:
    """Halve the part of the device's memory that is planned with, tell whoever keeps it, and return it."""
    share = _share.get(device, 1.0) / 2
    _share[device] = share
    for tell in _listeners:
        tell(device, share)
    return share


@contextlib.contextmanager
def memory_share(device: str, share: float, changed: Callable[[str, float], None]) -> Iterator[None]:
    """Plan with this part of a device's memory; `changed` is called where it had to be halved. Scoped.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        share: in (0, 1]; what an earlier part of the same run ended with.
        changed: ``(device, share)``.
    """
    before = _share.get(device)
    _share[device] = share
    _listeners.append(changed)
    try:
        yield
    finally:
        _listeners.remove(changed)
        if before is None:
            _share.pop(device, None)
        else:
            _share[device] = before


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
        # The graph keeps what a hook returns: of a result the tensor itself would keep the graph in turn.
        return tensor.detach()

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
