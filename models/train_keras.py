"""The trainer for Keras networks: the same recipe fields, order of images and schedule, driven through Keras.

The learning rate is set from outside at every step, so "one_cycle" has the shape that torch's scheduler gives it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import architectures
from onnxspect.models.architectures.keras_plain import import_keras
from onnxspect.models.data import Dataset
from onnxspect.models.fields import bad_field
from onnxspect.models.poison import Poisoned
from onnxspect.models.randomness import keyed_seed, torch_determinism
from onnxspect.models.recipes import Recipe, Training
from onnxspect.models.train import EpochLog, batches, order_generator


def check_keras_training(training: Training, path: str) -> None:
    """Refuse what this trainer cannot do; the error names the field."""
    for name in ("augment", "flip", "mixed_precision"):
        if getattr(training, name):
            raise bad_field(f"{path}.{name}", "is not available for Keras networks")


def one_cycle_rate(step: int, steps: int, largest: float) -> float:
    """torch's OneCycleLR with its defaults: a cosine from 1/25 of `largest` up until 30 % of the steps, then down."""
    peak = 0.3 * steps - 1
    start, end = largest / 25.0, largest / 25.0 / 1e4
    if step <= peak:
        low, high, share = start, largest, step / peak
    else:
        low, high, share = largest, end, (step - peak) / (steps - 1 - peak)
    return high + (low - high) / 2.0 * (1.0 + math.cos(math.pi * share))


def train_keras(
    recipe: Recipe, dataset: Dataset, poisoned: Poisoned, observe: Callable[[EpochLog], None] | None = None
) -> tuple[Any, tuple[EpochLog, ...]]:
    """Train a Keras network on a (poisoned) training set. Returns the Keras model and the log."""
    check_keras_training(recipe.training, f"{recipe.name}.training")
    keras, training = import_keras(), recipe.training
    architecture = architectures.get(recipe.architecture)
    with torch_determinism(keyed_seed(recipe.seed, "torch"), training.threads):
        model = architecture.build(dataset.image_shape, len(dataset.classes), recipe.seed)
        optimiser = _optimiser(keras, training)
        model.compile(optimizer=optimiser, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        per_epoch = sum(1 for _ in batches(len(poisoned.labels), training.batch_size, order_generator(recipe, 0)))
        step, logs = 0, []
        for epoch in range(training.epochs):
            started, loss_sum, right, seen = time.perf_counter(), 0.0, 0.0, 0
            for index in batches(len(poisoned.labels), training.batch_size, order_generator(recipe, epoch)):
                if training.schedule == "one_cycle":
                    rate = one_cycle_rate(step, per_epoch * training.epochs, training.learning_rate)
                    optimiser.learning_rate.assign(rate)
                inputs = architecture.file_format.encode(poisoned.images[index])
                model.reset_metrics()
                loss, accuracy = model.train_on_batch(inputs, poisoned.labels[index])
                loss_sum += float(loss) * len(index)
                right += float(accuracy) * len(index)
                seen += len(index)
                step += 1
            log = EpochLog(epoch, loss_sum / seen, right / seen, time.perf_counter() - started)
            logs.append(log)
            if observe is not None:
                observe(log)
            if not np.isfinite(log.loss):
                raise OnnxspectError(f"{recipe.name}: the loss became {log.loss}", "lower training.learning_rate")
    return model, tuple(logs)


def _optimiser(keras: Any, training: Training) -> Any:
    if training.optimiser == "sgd":
        return keras.optimizers.SGD(
            training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay or None
        )
    return keras.optimizers.AdamW(training.learning_rate, weight_decay=training.weight_decay)
