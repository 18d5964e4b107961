"""The descent of retraining: Adam, its learning rate falling to zero by a cosine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam


class Descent:
    """Adam (Kingma and Ba, 2015, Alg. 1) on a model's parameters, its learning rate falling to zero by a cosine.

    The same bits as torch.optim.Adam with CosineAnnealingLR, whose classes import torch's compiler: two seconds of a patch,
    and six where its modules have to be compiled.

    Args:
        parameters: made trainable.
        learning_rate: at the start.
        length: calls of `anneal` until it is zero.

    Attributes:
        rate: the present learning rate.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], learning_rate: float, length: int) -> None:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        self._parameters: list[Tensor] = list(parameters.values())
        self._first, self._second = ([torch.zeros_like(p) for p in self._parameters] for _ in range(2))
        self._steps = [torch.tensor(0.0) for _ in self._parameters]
        self._length, self._annealed = length, 0
        self.rate = learning_rate

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of a loss; parameters that it does not depend on stay."""
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        used = [(i, g) for i, g in enumerate(gradients) if g is not None]
        parameters, first, second, steps = (
            [column[i] for i, _ in used] for column in (self._parameters, self._first, self._second, self._steps)
        )
        with torch.no_grad():
            adam(
                parameters, [g for _, g in used], first, second, [], steps, amsgrad=False, maximize=False,
                beta1=0.9, beta2=0.999, eps=1e-8, lr=self.rate, weight_decay=0.0,
            )  # fmt: skip

    def anneal(self) -> None:
        """The next learning rate (Loshchilov, Hutter, 2017, Eq. 5, as a factor on the last one)."""
        self._annealed += 1
        now, before = (1 + math.cos(math.pi * n / self._length) for n in (self._annealed, self._annealed - 1))
        self.rate = now / before * self.rate if before else 0.0
