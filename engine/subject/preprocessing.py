"""Preflight: before any search the subject must classify the given clean samples.

The usual preprocessings are all tried on (a part of) the clean samples. The best accuracy wins; among those that no
test could tell from the best, the lowest cross-entropy does. When even the best is near chance, nothing that a search
could find would mean anything, so the run stops and says what was tried, and whether the labels look permuted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax
from torch import nn

from onnxspect.converters.lowering.logits import LogitsInfo
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.class_scores import ClassScores, are_probabilities
from onnxspect.engine.subject.memory import in_parts
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

#: Samples that the preprocessings are compared on; the chosen one is then measured on all.
TRIAL_SAMPLES = 512

# The constants that published training code uses, and where they come from.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision.models
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # channel statistics of the training set
_CIFAR10_B = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # the widespread variant (mean of per-image std)
_GTSRB = ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669))  # channel statistics of the training set
_MNIST = ((0.1307,), (0.3081,))  # pytorch/examples
_FASHION = ((0.2860,), (0.3530,))  # channel statistics of the training set
_CAFFE_BGR = ((103.939, 116.779, 123.68), (1.0, 1.0, 1.0))  # Caffe and keras.applications "caffe" mode
#: Classes up to which answers are matched with labels in another order: the table has their square, the matching takes their cube.
_MOST_MATCHED = 5_000


def candidates(channels: int, layout: str) -> list[InputSpec]:
    """The usual preprocessings for images of so many channels, the plainest first."""
    plain = [
        InputSpec("0..1", layout),
        InputSpec("0..255", layout, scale=255.0),
        InputSpec("-1..1", layout, mean=(0.5,), std=(0.5,)),
        InputSpec("-0.5..0.5", layout, mean=(0.5,)),
    ]
    if channels == 1:
        return [
            *plain,
            InputSpec("mnist mean/std", layout, mean=_MNIST[0], std=_MNIST[1]),
            InputSpec("fashion-mnist mean/std", layout, mean=_FASHION[0], std=_FASHION[1]),
        ]
    colour = [
        *plain,
        InputSpec("imagenet mean/std", layout, mean=_IMAGENET[0], std=_IMAGENET[1]),
        InputSpec("cifar-10 mean/std", layout, mean=_CIFAR10[0], std=_CIFAR10[1]),
        InputSpec("cifar-10 mean/std (0.2023)", layout, mean=_CIFAR10_B[0], std=_CIFAR10_B[1]),
        InputSpec("gtsrb mean/std", layout, mean=_GTSRB[0], std=_GTSRB[1]),
    ]
    swapped = [replace(s, name=f"{s.name}, BGR", channel_order="BGR") for s in colour[:5]]
    caffe = InputSpec("caffe: 0..255 BGR, mean subtracted", layout, "BGR", 255.0, *_CAFFE_BGR)
    return [*colour, *swapped, caffe]


#: By so much more must the answers agree with the labels in another order, for that order to be the likelier one.
BETTER_MOVED = 0.2


@dataclass(frozen=True)
class Preflight:
    """What preflight chose and why.

    Attributes:
        subject: the subject with the chosen InputSpec.
        clean_accuracy: on all samples, in [0, 1].
        why: one sentence for the report.
        tried: (name, accuracy on the trial samples) of every candidate, in order.
    """

    subject: Subject
    clean_accuracy: float
    why: str
    tried: tuple[tuple[str, float], ...]

    def describe(self) -> dict[str, Any]:
        """As the report shows it."""
        return {
            "chosen": self.subject.spec.describe(),
            "why": self.why,
            "clean_accuracy": self.clean_accuracy,
            "tried": [{"name": n, "accuracy": a} for n, a in self.tried],
        }


def accuracy_floor(labels: np.ndarray, classes: int) -> float:
    """The accuracy below which a classifier counts as near chance on `labels`.

    A quarter of the way from chance (guessing the most frequent class) to perfect: 0.325 for ten balanced classes.
    """
    chance = max(float(np.bincount(labels).max()) / len(labels), 1.0 / classes)
    return chance + 0.25 * (1.0 - chance)


def preflight(subject: Subject, samples: Samples, run: RunContext, spec: InputSpec | None = None) -> Preflight:
    """Find how pixels must be fed to `subject`, and check that it then classifies `samples`.

    Args:
        subject: its layout is kept; range, mean, deviation and channel order are tried.
        samples: clean, labelled.
        run: seed of the trial draw; the observer reports the choice.
        spec: the user's own preprocessing; then nothing else is tried.

    Raises:
        OnnxspectError: labels outside the classes, one class only, sizes that do not fit, or near chance with every
            usual preprocessing.
    """
    where = samples.path or "the samples"
    if samples.shape != subject.image_shape:
        raise OnnxspectError(f"{where}: images of shape {samples.shape}, the model takes {subject.image_shape}")
    check_labels(samples, subject)
    if len(np.unique(samples.labels)) < 2:
        raise OnnxspectError(f"{where}: all samples are of one class", "give clean samples of at least two classes")

    rows = run.numpy_generator("preflight").permutation(len(samples))[:TRIAL_SAMPLES]
    trial = samples.take(np.sort(rows))
    layout = subject.spec.layout
    subject = _of_probabilities(subject, trial.images, run)
    options = [replace(spec, layout=layout)] if spec is not None else candidates(samples.shape[0], layout)
    found = _tried(subject, options, trial.images)
    scores = [_score(logits, trial.labels) for logits in found]
    accuracies = np.array([a for a, _ in scores])
    entropies = np.array([e for _, e in scores])

    best = float(accuracies.max())
    tolerance = float(np.sqrt(max(best * (1 - best), 1.0 / len(trial)) / len(trial)))
    close = np.flatnonzero(accuracies >= best - tolerance)
    chosen = int(close[np.argmin(entropies[close])])
    tried = tuple((o.name, float(a)) for o, a in zip(options, accuracies, strict=True))
    settled = subject.with_spec(options[chosen])
    settled.check(trial.images)

    floor = accuracy_floor(samples.labels, subject.classes)
    if best < floor:
        raise _near_chance(subject, options, found, accuracies, trial, floor, where, given=spec is not None)
    answers = settled.predict(samples.images).argmax(1)
    accuracy = float((answers == samples.labels).mean())
    moved = _moved(answers[np.sort(rows)], trial.labels, subject.classes, best + BETTER_MOVED)
    if moved:
        run.observer.notice(
            f"the answers follow the labels better in another order ({moved}): is the class order of the data the model's? "
            "Folders count in alphabetical order unless they are named by index"
        )
    if spec is not None:
        why = "as given by the user"
    else:
        why = f"best of {len(options)} usual preprocessings on {len(trial)} clean samples"
        others = [t for i, t in enumerate(tried) if i != chosen]
        runner_up = max(others, key=lambda t: t[1])
        why += f" ({accuracies[chosen]:.1%}; next {runner_up[0]}: {runner_up[1]:.1%})"
    run.observer.notice(f"preprocessing: {settled.spec.name} ({settled.spec.layout}), {why}")
    return Preflight(settled, accuracy, why, tried)


#: Images by which it is told that answers are probabilities.
_TOLD = 32


def _of_probabilities(subject: Subject, images: np.ndarray, run: RunContext) -> Subject:
    """The subject, with the logarithm of its answers where these are probabilities whose softmax the graph does not show.

    They are probabilities whatever the preprocessing is, so the first guess serves.
    """
    if subject.logits is not None and subject.logits.how != "logits":
        return subject
    if not are_probabilities(subject.predict(images[:_TOLD])):
        return subject
    run.observer.notice("its answers to the samples are probabilities: their logarithm is searched")
    info = replace(subject.logits or LogitsInfo("", "logits", ()), how="log_of_probabilities")
    double = isinstance(subject.module, ClassScores) and subject.module.double_input
    inner = subject.module if subject.lowered is None else subject.lowered.module
    if not isinstance(inner, nn.Module):
        return subject
    module = ClassScores(inner, info, double)
    return replace(subject, module=module, logits=None if subject.logits is None else info)


class Labelled(Protocol):
    """Clean samples, or a training set on disk."""

    @property
    def labels(self) -> np.ndarray:
        """Of each image, int64 ``(n,)``."""

    @property
    def path(self) -> str | Path:
        """Where it came from; "" for arrays."""


def check_labels(samples: Labelled, subject: Subject) -> None:
    """Refuse samples with a label that the settled subject does not have.

    Raises:
        OnnxspectError: there is one.
    """
    top = int(samples.labels.max())
    if top >= subject.classes:
        raise OnnxspectError(
            f"{samples.path or 'the samples'}: label {top}, but {subject.name} has {subject.classes} classes "
            f"(0 to {subject.classes - 1})",
            "are these the model's data, and do its labels count from 0?",
        )


def _tried(subject: Subject, options: Sequence[InputSpec], images: np.ndarray) -> list[np.ndarray]:
    """Logits ``(n, classes)`` float32 of the images under every option."""
    if not _in_one_pass(subject.device):
        return [subject.with_spec(option).predict(images) for option in options]
    return _tried_together(subject, options, images)


def _in_one_pass(device: str) -> bool:
    """Whether all options go through the network together: a GPU is not filled by one."""
    return device != "cpu"


def _tried_together(subject: Subject, options: Sequence[InputSpec], images: np.ndarray) -> list[np.ndarray]:
    """The same in passes over as many inputs as may be in memory at a time, made of all options' readings of the images."""
    as_is = subject.with_spec(InputSpec())  # what it is fed is encoded already
    step = max(1, subject.images_at_once // len(options))
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), step):
            pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + step])).to(subject.device)
            encoded = torch.cat([option.encode(pixels) for option in options])
            logits = in_parts(as_is.in_one_pass, encoded, subject.images_at_once)
            parts.append(logits.float().unflatten(0, (len(options), -1)))
        return list(torch.cat(parts, dim=1).cpu().numpy())


def _score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(accuracy, mean cross-entropy); a model that answers NaN scores worst."""
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        return 0.0, np.inf
    picked = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float((logits.argmax(1) == labels).mean()), float(-picked.mean())


def _near_chance(
    subject: Subject,
    options: Sequence[InputSpec],
    found: Sequence[np.ndarray],
    accuracies: np.ndarray,
    trial: Samples,
    floor: float,
    where: str,
    given: bool,
) -> OnnxspectError:
    best = int(np.argmax(accuracies))
    message = (
        f"{subject.name} classifies {accuracies[best]:.1%} of {where} correctly with "
        + ("the given preprocessing" if given else f"the best of {len(options)} usual preprocessings")
        + f" ({options[best].name}): near chance (at least {floor:.1%} is needed)"
    )
    for logits in found:  # consistent answers under other names mean that the label order differs
        moved = _moved(logits.argmax(1), trial.labels, subject.classes, max(2 * floor, 0.6))
        if moved:
            return OnnxspectError(
                f"{message}, but its answers follow the labels in another order: {moved}",
                "the class order of the data differs from the model's: renumber the labels",
            )
    return OnnxspectError(message, "give the right --scale/--mean/--std/--channel-order, or the model's own data")


def _moved(answers: np.ndarray, labels: np.ndarray, classes: int, least: float) -> str:
    """How the answers follow the labels in another order, where at least this share of them does; else ""."""
    if len(labels) <= 5 * classes or classes > _MOST_MATCHED:
        return ""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (labels, answers), 1)
    rows, columns = linear_sum_assignment(-table)
    if table[rows, columns].sum() / len(labels) < least:
        return ""
    moved = [(r, c) for r, c in zip(rows, columns, strict=True) if r != c and table[r, c] > 0][:4]
    return ", ".join(f"label {r} is answered as {c}" for r, c in moved)
