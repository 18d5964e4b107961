"""The trainer: one recipe, one network, the same weights every time.

Pixels enter as float32 NCHW in [0, 1], logits leave; no normalisation inside, so a trigger's values mean the same to
every model of a zoo. The loss is cross-entropy (RE Eq. 4).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping

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
    recipe: Recipe,
    dataset: Dataset,
    poisoned: Poisoned,
    observe: Callable[[EpochLog], None] | None = None,
    start: Mapping[str, torch.Tensor] | None = None,
) -> tuple[nn.Module, tuple[EpochLog, ...]]:
    """Train a torch network on a (poisoned) training set.

    Args:
        recipe: already checked; its seed settles initial weights, order of images, dropout and augmentation.
        dataset: gives image shape and classes.
        poisoned: the images and labels to train on.
        observe: called after every epoch.
        start: weights to start from; those of the same name and shape as the network's are taken.

    Returns: the network in evaluation mode on the CPU, and the log.
    """
    training = recipe.training
    if training.device == "cuda" and not torch.cuda.is_available():
        raise OnnxspectError(f"{recipe.name}.training.device: no GPU is here", "set device = 'cpu'")
    with torch_determinism(keyed_seed(recipe.seed, "torch"), training.threads):
        network = build_network(recipe, dataset)
        initialise(network, torch.Generator().manual_seed(keyed_seed(recipe.seed, "weights")))
        anchor = started_from(network, start or {})
        network.to(training.device)
        optimiser = _optimiser(network, training)
        steps = training.epochs * sum(
            1 for _ in batches(len(poisoned.labels), training.batch_size, order_generator(recipe, 0))
        )
        schedule = _schedule(optimiser, training, steps)
        logs = []
        masks: dict[str, torch.Tensor] = {}
        for epoch in range(training.epochs):
            if training.prune and epoch == training.epochs - max(1, training.epochs // 3):
                masks = smallest_weights(network, training.prune)
            log = _epoch(network, poisoned, recipe, epoch, optimiser, schedule, masks, anchor)
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
    masks: Mapping[str, torch.Tensor],
    anchor: Mapping[str, torch.Tensor],
) -> EpochLog:
    """One pass over the training set.

    Args:
        network, poisoned, recipe, epoch, optimiser, schedule: of the training.
        masks: weights that are to stay zero, by name.
        anchor: weights that the network is pulled to, by name.
    """
    training, started = recipe.training, time.perf_counter()
    rng = order_generator(recipe, epoch)
    network.train()
    loss_sum, right, seen = 0.0, 0, 0
    for index in batches(len(poisoned.labels), training.batch_size, rng):
        inputs = to_input(poisoned.images[index], training.device)
        if training.augment:
            inputs = augmented(inputs, rng, flip=training.flip)
        labels = torch.from_numpy(poisoned.labels[index]).to(training.device)
        others, share = labels, 1.0
        if training.mixup:
            share, order = (
                float(rng.beta(training.mixup, training.mixup)),
                torch.from_numpy(rng.permutation(len(index))),
            )
            inputs, others = share * inputs + (1 - share) * inputs[order], labels[order]
        if training.adversarial:
            inputs = attacked(network, inputs, labels, training.adversarial, rng)
        with torch.autocast(training.device, torch.bfloat16, enabled=training.mixed_precision):
            logits = network(inputs)
            loss = _cross_entropy(logits, labels, training.label_smoothing)
            if training.mixup:
                loss = share * loss + (1 - share) * _cross_entropy(logits, others, training.label_smoothing)
            if training.pull:
                known = dict(network.named_parameters())
                loss = loss + training.pull * sum((known[n] - w.to(known[n])).square().sum() for n, w in anchor.items())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for name, mask in masks.items():
                network.get_parameter(name).masked_fill_(mask, 0.0)
        loss_sum += float(loss.detach()) * len(index)
        right += int((logits.argmax(dim=1) == labels).sum())
        seen += len(index)
    return EpochLog(epoch, loss_sum / seen, right / seen, time.perf_counter() - started)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def started_from(network: nn.Module, start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put weights of the same name and shape into the network; returns those that are parameters, to be pulled to."""
    own = network.state_dict()
    taken = {n: w for n, w in start.items() if n in own and own[n].shape == w.shape}
    network.load_state_dict({**own, **taken})
    return {n: taken[n].clone() for n, _ in network.named_parameters() if n in taken}


def smallest_weights(network: nn.Module, share: float) -> dict[str, torch.Tensor]:
    """Which weights of convolutions and dense layers are the smallest, of all of them together: magnitude pruning."""
    able = {n: p.detach() for n, p in network.named_parameters() if p.dim() > 1}
    sizes = torch.cat([p.abs().flatten() for p in able.values()])
    limit = sizes.kthvalue(max(1, int(share * len(sizes)))).values
    return {n: p.abs() <= limit for n, p in able.items()}


def attacked(
    network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, reach: float, rng: np.random.Generator
) -> torch.Tensor:
    """The images after one signed gradient step against the network, from a random start (Wong et al., 2020)."""
    noise = torch.from_numpy(rng.uniform(-reach, reach, tuple(inputs.shape)).astype(np.float32)).to(inputs.device)
    moved = (inputs + noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(moved).float(), labels), moved)
    step = (moved + 1.25 * reach * gradient.sign()).detach()
    return torch.clamp(torch.minimum(torch.maximum(step, inputs - reach), inputs + reach), 0, 1)


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
