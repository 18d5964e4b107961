"""The trainer: one recipe, one network, the same weights every time.

Pixels enter as float32 NCHW in [0, 1], logits leave; no normalisation inside, so a trigger's values mean the same to
every model of a zoo. The loss is cross-entropy (RE Eq. 4).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import architectures
from onnxspect.models.augment import augmented
from onnxspect.models.data import Dataset
from onnxspect.models.poison import Poisoned
from onnxspect.models.randomness import keyed_generator, keyed_seed, torch_determinism
from onnxspect.models.recipes import Recipe, Training


@dataclasses.dataclass(frozen=True)
class EpochLog:
    """One epoch: mean training loss, share of training images answered as labelled, wall seconds."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight from `generator`: He normal for ReLU nets (He et al., 2015), zero biases, unit BatchNorm."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = math.prod(module.weight.shape[1:])
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_in), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def batches(count: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Shuffled index batches of one epoch. A last batch of one is left out: BatchNorm has no variance of one."""
    order = rng.permutation(count)
    for start in range(0, count, size):
        if count - start > 1:
            yield order[start : start + size]


def to_input(images: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """uint8 ``(n, h, w, c)`` as the float32 ``(n, c, h, w)`` in [0, 1] that networks take."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).float() / 255.0


def train(
    recipe: Recipe, dataset: Dataset, poisoned: Poisoned, observe: Callable[[EpochLog], None] | None = None
) -> tuple[nn.Module, tuple[EpochLog, ...]]:
    """Train a torch network on a (poisoned) training set.

    Args:
        recipe: already checked; its seed settles initial weights, order of images, dropout and augmentation.
        dataset: gives image shape and classes.
        poisoned: the images and labels to train on.
        observe: called after every epoch.

    Returns: the network in evaluation mode on the CPU, and the log.
    """
    training = recipe.training
    if training.device == "cuda" and not torch.cuda.is_available():
        raise OnnxspectError(f"{recipe.name}.training.device: no GPU is here", "set device = 'cpu'")
    with torch_determinism(keyed_seed(recipe.seed, "torch"), training.threads):
        network = build_network(recipe, dataset)
        initialise(network, torch.Generator().manual_seed(keyed_seed(recipe.seed, "weights")))
        network.to(training.device)
        optimiser = _optimiser(network, training)
        steps = training.epochs * sum(
            1 for _ in batches(len(poisoned.labels), training.batch_size, order_generator(recipe, 0))
        )
        schedule = _schedule(optimiser, training, steps)
        logs = []
        for epoch in range(training.epochs):
            log = _epoch(network, poisoned, recipe, epoch, optimiser, schedule)
            logs.append(log)
            if observe is not None:
                observe(log)
            if not math.isfinite(log.loss):
                raise OnnxspectError(f"{recipe.name}: the loss became {log.loss}", "lower training.learning_rate")
    return network.cpu().eval(), tuple(logs)


def build_network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The recipe's torch network, untrained and uninitialised."""
    network: nn.Module = architectures.get(recipe.architecture).build(
        dataset.image_shape, len(dataset.classes), recipe.seed
    )
    return network


def order_generator(recipe: Recipe, epoch: int) -> np.random.Generator:
    """The generator of one epoch: order of the images and augmentation."""
    return keyed_generator(recipe.seed, "order", epoch)


def _epoch(
    network: nn.Module,
    poisoned: Poisoned,
    recipe: Recipe,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> EpochLog:
    """One pass over the training set."""
    training, started = recipe.training, time.perf_counter()
    rng = order_generator(recipe, epoch)
    network.train()
    loss_sum, right, seen = 0.0, 0, 0
    for index in batches(len(poisoned.labels), training.batch_size, rng):
        inputs = to_input(poisoned.images[index], training.device)
        if training.augment:
            inputs = augmented(inputs, rng, flip=training.flip)
        labels = torch.from_numpy(poisoned.labels[index]).to(training.device)
        with torch.autocast(training.device, torch.bfloat16, enabled=training.mixed_precision):
            logits = network(inputs)
            loss = nn.functional.cross_entropy(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        loss_sum += float(loss.detach()) * len(index)
        right += int((logits.argmax(dim=1) == labels).sum())
        seen += len(index)
    return EpochLog(epoch, loss_sum / seen, right / seen, time.perf_counter() - started)


def _optimiser(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            network.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
    return torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)


def _schedule(optimiser: torch.optim.Optimizer, training: Training, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if training.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=training.learning_rate, total_steps=steps, cycle_momentum=False
        )
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0, total_iters=0)
