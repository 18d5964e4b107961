"""Networks of one form trained side by side: one step of all of them is one step of one network that is wider.

Channels of all networks stand beside each other. A convolution in as many groups as there are networks keeps them
apart; BatchNorm works channel by channel anyway; the last layer is a batched matrix product. So each network sees its own
batches and gets its own gradients, and differs from one that is trained alone by the order of floating-point sums only.

A step reads its batch out of the training images, which lie on the device, by the step's number, which lies there too: it
takes nothing from the host, so that it can be recorded (stepper.py). Parameters of all networks are views of one
vector, and AdamW (Loshchilov, Hutter, 2019, arXiv:1711.05101) is seven operations on it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from onnxspect.engine.subject.small_network import SmallNetwork
from onnxspect.engine.subject.stepper import make_stepper

#: Of one training step: rows of the images ``(batch,)`` int64, and by how many pixels they are rolled (down, right).
Batch = tuple[Tensor, tuple[int, int]]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
_MOMENTUM, _NORM_EPSILON = 0.1, 1e-5  # nn.BatchNorm2d's
#: Parameters start at multiples of so many elements in the common vector: kernels want aligned addresses.
_ALIGNED = 64

Arithmetic = Callable[[str], contextlib.AbstractContextManager[object]]


def train_side_by_side(
    networks: Sequence[SmallNetwork],
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Sequence[Batch]],
    device: str,
    learning_rate: float,
    weight_decay: float,
    arithmetic: Arithmetic = contextlib.nullcontext,
) -> None:
    """Train `networks`, which stay on the CPU; their parameters and statistics are replaced at the end.

    Args:
        networks: of the same form and type.
        images: ``(n, channels, height, width)``, of the networks' type.
        labels: ``(n,)`` int64.
        batches: one sequence a network, all with the same batch sizes in the same order.
        device: where to train.
        learning_rate, weight_decay: AdamW's.
        arithmetic: context, given the device, in which logits and losses are computed. Parameters, gradients and AdamW keep
            the networks' type.

    Raises:
        torch.OutOfMemoryError: it does not fit in the device's memory; the networks are as before.
    """
    sizes = [len(rows) for rows, _ in batches[0]]
    if not sizes:
        return
    together = _Together(networks, images, labels, batches, device, learning_rate, weight_decay, arithmetic)
    run = {
        size: make_stepper(partial(together.step, size), together, device, sizes.count(size))
        for size in dict.fromkeys(sizes)
    }
    for size in sizes:
        run[size]()
    together.hand_back(networks, len(sizes))


class _Together:
    """All that a step reads and writes, at fixed addresses on the device."""

    def __init__(
        self,
        networks: Sequence[SmallNetwork],
        images: Tensor,
        labels: Tensor,
        batches: Sequence[Sequence[Batch]],
        device: str,
        learning_rate: float,
        weight_decay: float,
        arithmetic: Arithmetic,
    ) -> None:
        self._device, self._arithmetic = device, arithmetic
        self._count, self._blocks = len(networks), len(networks[0].convolutions)
        self._images, self._labels = images.to(device), labels.to(device)
        columns = list(zip(*(dict(n.named_parameters()).values() for n in networks), strict=True))
        self._names = [name for name, _ in networks[0].named_parameters()]
        self._shapes = [(self._count, *column[0].shape) for column in columns]
        self._padded = [math.ceil(math.prod(shape) / _ALIGNED) * _ALIGNED for shape in self._shapes]
        stacked = [torch.stack([p.detach() for p in column]).flatten() for column in columns]
        vector = [functional.pad(s, (0, n - len(s))) for s, n in zip(stacked, self._padded, strict=True)]
        self._vector = torch.cat(vector).to(device).requires_grad_(True)
        self._first, self._second = torch.zeros_like(self._vector), torch.zeros_like(self._vector)
        buffers = [dict(network.named_buffers()) for network in networks]
        self._means, self._variances = (
            [torch.cat([b[f"norms.{i}.{kind}"] for b in buffers]).to(device) for i in range(self._blocks)]
            for kind in ("running_mean", "running_var")
        )

        steps = range(1, len(batches[0]) + 1)
        largest = max(len(rows) for rows, _ in batches[0])
        rows = [
            torch.stack([functional.pad(r, (0, largest - len(r))) for r, _ in step])
            for step in zip(*batches, strict=True)
        ]
        # By step: rows of every network's batch, its rolls, AdamW's step size and the root of its second correction.
        self._rows = torch.stack(rows).to(device)  # (steps, networks, largest batch)
        self._rolls = torch.tensor([[s for _, s in step] for step in zip(*batches, strict=True)]).to(device)
        self._gains = torch.tensor([-learning_rate / (1 - BETA1**i) for i in steps], dtype=images.dtype).to(device)
        self._roots = torch.tensor([math.sqrt(1 - BETA2**i) for i in steps], dtype=images.dtype).to(device)
        self._decay = 1 - learning_rate * weight_decay
        self._now = torch.zeros(1, dtype=torch.int64, device=device)
        self._axes = [torch.arange(n, device=device) for n in self._images.shape[1:]]

    @property
    def state(self) -> list[Tensor]:
        """What a step changes: always at the same addresses."""
        return [self._vector, self._first, self._second, self._now, *self._means, *self._variances]

    def step(self, size: int) -> None:
        """One training step of all networks, on `size` images each."""
        images, labels = self._batch(size)
        with self._arithmetic(self._device):
            logits = self._logits(images)
            # The sum over networks of the mean over their batches.
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / size
        (gradient,) = torch.autograd.grad(loss, [self._vector])
        with torch.no_grad():
            self._first.lerp_(gradient, 1 - BETA1)
            self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            below = (self._second.sqrt() / self._roots.index_select(0, self._now)).add_(EPSILON)
            self._vector.mul_(self._decay)
            self._vector.add_(self._first / below * self._gains.index_select(0, self._now))
            self._now.add_(1)

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images ``(size, networks * channels, height, width)`` and labels ``(networks, size)``."""
        rows = self._rows.index_select(0, self._now)[0, :, :size]
        rolls = self._rolls.index_select(0, self._now)[0]
        channels, height, width = self._axes
        # As torch.roll: what comes to row i was at i - shift.
        down = (height - rolls[:, :1]) % len(height)
        right = (width - rolls[:, 1:]) % len(width)
        images = self._images[
            rows.t()[:, :, None, None, None],
            channels[None, None, :, None, None],
            down[None, :, None, :, None],
            right[None, :, None, None, :],
        ]
        return images.flatten(1, 2), self._labels[rows]

    def _parameters(self) -> dict[str, Tensor]:
        """Name in a network -> the parameters of all networks ``(networks, ...)``, as views of the common vector."""
        parts = self._vector.split(self._padded)
        shaped = zip(self._names, parts, self._shapes, strict=True)
        return {name: part[: math.prod(shape)].view(shape) for name, part, shape in shaped}

    def _logits(self, x: Tensor) -> Tensor:
        """``(networks, batch, classes)``: SmallNetwork.forward in training mode, for all networks."""
        parameters = {k: p if k.startswith("head") else p.flatten(0, 1) for k, p in self._parameters().items()}
        for i in range(self._blocks):
            weight, bias = parameters[f"convolutions.{i}.weight"], parameters[f"convolutions.{i}.bias"]
            x = functional.conv2d(x, weight, bias, padding=1, groups=self._count)
            scale, offset = parameters[f"norms.{i}.weight"], parameters[f"norms.{i}.bias"]
            mean, variance = self._means[i], self._variances[i]
            x = functional.batch_norm(x, mean, variance, scale, offset, True, _MOMENTUM, _NORM_EPSILON)
            x = functional.relu(x)
            if min(x.shape[-2:]) >= 2:
                x = functional.max_pool2d(x, 2)
        features = x.unflatten(1, (self._count, -1)).flatten(2).transpose(0, 1)
        return torch.baddbmm(parameters["head.bias"][:, None], features, parameters["head.weight"].mT)

    def hand_back(self, networks: Sequence[SmallNetwork], steps: int) -> None:
        """Give every network its parameters and statistics."""
        parameters = {k: p.detach().cpu() for k, p in self._parameters().items()}
        means, variances = ([t.cpu().chunk(self._count) for t in kept] for kept in (self._means, self._variances))
        for i, network in enumerate(networks):
            found = {k: p[i] for k, p in parameters.items()}
            for block in range(self._blocks):
                found[f"norms.{block}.running_mean"] = means[block][i]
                found[f"norms.{block}.running_var"] = variances[block][i]
                found[f"norms.{block}.num_batches_tracked"] = torch.tensor(steps)
            network.load_state_dict(found)
