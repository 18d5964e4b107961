"""Preflight: before any search the subject must classify the given clean samples.

The usual preprocessings are all tried on (a part of) the clean samples, and input_range.py chooses among them. When even the best
is near chance, nothing that a search could find would mean anything, so the run stops and says what is there: another order of
the classes, answers that are no numbers, a model that answers one class whatever it sees, or data that are not its own. Where
the answers follow the labels better in another order (class_order.py), it stops and asks, however good the accuracy is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from onnxspect.converters.lowering.logits import LogitsInfo
from onnxspect.converters.stages import stage
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.batch_statistics import stated_by_statistics
from onnxspect.engine.subject.class_order import Order, other_order
from onnxspect.engine.subject.class_scores import ClassScores, are_probabilities
from onnxspect.engine.subject.file_facts import stated_options
from onnxspect.engine.subject.input_range import Choice, choose
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


#: A model that gives one class to so many of samples that are of several answers without looking.
ONE_ANSWER = 0.9


@dataclass(frozen=True)
class Preflight:
    """What preflight chose and why.

    Attributes:
        subject: the subject with the chosen InputSpec.
        clean_accuracy: on all samples, in [0, 1].
        why: one sentence for the report.
        tried: (name, accuracy on the trial samples) of every candidate, in order.
        notes: what was guessed, and what could not be told apart, in sentences.
    """

    subject: Subject
    clean_accuracy: float
    why: str
    tried: tuple[tuple[str, float], ...]
    notes: tuple[str, ...] = ()

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


def preflight(
    subject: Subject, samples: Samples, run: RunContext, spec: InputSpec | None = None, order_given: bool = False
) -> Preflight:
    """Find how pixels must be fed to `subject`, and check that it then classifies `samples`.

    Args:
        subject: its layout is kept; range, mean, deviation and channel order are tried.
        samples: clean, labelled.
        run: seed of the trial draw; the observer reports the choice.
        spec: the user's own preprocessing; then nothing else is tried.
        order_given: the user has stated the order of the classes: another one that fits better is reported, and no reason to stop.

    Raises:
        OnnxspectError: labels outside the classes, one class only, sizes that do not fit, near chance with every
            usual preprocessing, or another order of the classes.
    """
    where = samples.path or "the samples"
    if samples.shape != subject.image_shape:
        raise OnnxspectError(
            f"{where}: images of shape {samples.shape}, the model takes {subject.image_shape}",
            "--resize brings images to the model's size",
        )
    if len(np.unique(samples.labels)) < 2:
        raise OnnxspectError(f"{where}: all samples are of one class", "give clean samples of at least two classes")
    stage("finding the preprocessing")
    rng = run.numpy_generator("preflight")
    trial = samples.take(np.sort(rng.permutation(len(samples))[:TRIAL_SAMPLES]))
    layout = subject.spec.layout
    as_opened, subject = subject, _of_probabilities(subject, trial.images)
    of_probabilities = () if subject is as_opened else (PROBABILITIES,)
    options = [replace(spec, layout=layout)] if spec is not None else candidates(samples.shape[0], layout)
    if int(samples.labels.max()) >= subject.classes:
        raise _outside(subject, samples, lambda: _tried(subject, options, trial.images), trial, rng)
    found = _tried(subject, options, trial.images)
    choice = choose(found, trial.labels, _stated(subject, options, trial, given=spec is not None))
    tried = tuple((o.name, float(a)) for o, a in zip(options, choice.accuracies, strict=True))
    settled = subject.with_spec(options[choice.index])
    settled.check(trial.images)

    floor = accuracy_floor(samples.labels, subject.classes)
    if float(choice.accuracies.max()) < floor:
        raise _near_chance(subject, options, found, choice.accuracies, trial, floor, where, spec is not None, rng)
    answers = settled.predict(samples.images).argmax(1)
    accuracy = float((answers == samples.labels).mean())
    notes = (
        *of_probabilities,
        *_alike(options, choice, len(trial)),
        *_order_notes(answers, samples, subject, rng, order_given),
    )
    why = _why(options, choice, tried, len(trial), given=spec is not None)
    run.observer.notice(f"preprocessing: {settled.spec.name} ({settled.spec.layout}), {why}")
    for note in notes:
        run.observer.notice(note)
    return Preflight(settled, accuracy, why, tried, notes)


def _stated(subject: Subject, options: Sequence[InputSpec], trial: Samples, given: bool) -> dict[int, str]:
    """Which options the file speaks for; nothing where there is no file or no choice."""
    if given or subject.file is None:
        return {}
    return stated_options(subject.file, options) or stated_by_statistics(subject, options, trial.images)


def _why(options: Sequence[InputSpec], choice: Choice, tried: Sequence[tuple[str, float]], n: int, given: bool) -> str:
    if given:
        return "as given by the user"
    others = [t for i, t in enumerate(tried) if i != choice.index]
    runner_up = max(others, key=lambda t: t[1])
    accuracy = choice.accuracies[choice.index]
    place = "best" if accuracy >= runner_up[1] else "one"
    why = f"{place} of {len(options)} usual preprocessings on {n} clean samples"
    why += f" ({accuracy:.1%}; {'next' if place == 'best' else 'best'} {runner_up[0]}: {runner_up[1]:.1%})"
    return f"{why}; {choice.reason}" if choice.reason else why


def _alike(options: Sequence[InputSpec], choice: Choice, n: int) -> tuple[str, ...]:
    """What is to be said of readings that nothing told apart."""
    if not choice.alike:
        return ()
    names = [options[i].name for i in choice.alike]
    return (
        f"{n} samples cannot tell the preprocessing {options[choice.index].name} from {', '.join(names)}: it was taken as the "
        "plainest; where you know the model's own, pass --scale, --mean, --std and --channel-order",
    )


def check_order(subject: Subject, samples: Samples, run: RunContext) -> tuple[str, ...]:
    """Refuse samples whose labels the settled subject's answers follow better in another order of the classes.

    Returns:
        what is to be said of another order, where the user has stated the one that the labels have.

    Raises:
        OnnxspectError: there is one, and the user has not stated the order.
    """
    rng = run.numpy_generator("preflight", "order")
    return _order_notes(subject.predict(samples.images).argmax(1), samples, subject, rng, samples.order_given)


def _order_notes(
    answers: np.ndarray, samples: Samples, subject: Subject, rng: np.random.Generator, order_given: bool
) -> tuple[str, ...]:
    """What is to be said of another order, where the user has stated the one that the labels have. Raises as `check_order`."""
    order = other_order(answers, samples.labels, subject.classes, rng)
    if order is None:
        return ()
    said = (
        f"the answers of {subject.name} follow the labels better in another order of the classes: {order.share:.1%} instead "
        f"of {order.as_is:.1%} ({order.moved(samples.names)})"
    )
    if not order_given:
        raise OnnxspectError(f"{samples.path or 'the samples'}: {said}", _state_order(order, samples, subject))
    return (f"{said}; the given order was kept",)


#: Images by which it is told that answers are probabilities.
_TOLD = 32
#: What is said then.
PROBABILITIES = "its answers to the samples are probabilities: their logarithm is searched"


def _of_probabilities(subject: Subject, images: np.ndarray) -> Subject:
    """The subject, with the logarithm of its answers where these are probabilities whose softmax the graph does not show.

    They are probabilities whatever the preprocessing is, so the first guess serves.
    """
    if subject.logits is not None and subject.logits.how != "logits":
        return subject
    if not are_probabilities(subject.predict(images[:_TOLD])):
        return subject
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
    if int(samples.labels.max()) >= subject.classes:
        raise _beyond(samples, subject)


def _beyond(samples: Labelled, subject: Subject, found: str = "", hint: str = "") -> OnnxspectError:
    top, low = int(samples.labels.max()), int(samples.labels.min())
    message = (
        f"{samples.path or 'the samples'}: label {top}, but {subject.name} has {subject.classes} classes "
        f"(0 to {subject.classes - 1})"
    )
    if top == subject.classes and low >= 1:
        message += ": the labels count from 1"
        hint = hint or _from_one(subject.classes)
    return OnnxspectError(message + found, hint or "are these the model's data? --classes names its classes in order")


def _from_one(classes: int) -> str:
    listed = ",".join(map(str, range(1, classes + 1)))
    listed = listed if classes <= 20 else f"FILE, with the lines 1 to {classes}"
    return f"--classes {listed} reads label 1 as the model's first class"


def _outside(
    subject: Subject, samples: Samples, logits: Callable[[], list[np.ndarray]], trial: Samples, rng: np.random.Generator
) -> OnnxspectError:
    """Why labels lie outside the classes: they count from one, or are others altogether; the answers say which order is theirs."""
    if len(np.unique(samples.labels)) > subject.classes:
        return _beyond(samples, subject)
    orders = [other_order(x.argmax(1), trial.labels, subject.classes, rng) for x in logits() if np.isfinite(x).all()]
    order = max((o for o in orders if o is not None), key=lambda o: o.share, default=None)
    if order is None:
        return _beyond(samples, subject)
    shifted = all(c == k - 1 for k, c in order.answered.items())
    found = "; read so" if shifted else f"; where {order.moved(samples.names)}"
    hint = _from_one(subject.classes) if shifted else _state_order(order, samples, subject)
    return _beyond(samples, subject, f"{found}, {order.share:.1%} of the samples are classified correctly", hint)


def _state_order(order: Order, samples: Samples, subject: Subject) -> str:
    return f"if these are the model's classes, state their order: {order.option(samples.names, subject.classes)}"


def _tried(subject: Subject, options: Sequence[InputSpec], images: np.ndarray) -> list[np.ndarray]:
    """Logits ``(n, classes)`` float32 of the images under every option."""
    if not _in_one_pass(subject.device):
        _ = subject.kept_bytes  # measured once for all of them
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


def _near_chance(
    subject: Subject,
    options: Sequence[InputSpec],
    found: Sequence[np.ndarray],
    accuracies: np.ndarray,
    trial: Samples,
    floor: float,
    where: str,
    given: bool,
    rng: np.random.Generator,
) -> OnnxspectError:
    """What a model that classifies nothing correctly does instead, and the one thing to do about it."""
    best = int(np.argmax(accuracies))
    message = (
        f"{subject.name} classifies {accuracies[best]:.1%} of {where} correctly with "
        + ("the given preprocessing" if given else f"the best of {len(options)} usual preprocessings")
        + f" ({options[best].name}): near chance (at least {floor:.1%} is needed)"
    )
    finite = [x for x in found if np.isfinite(x).all()]
    if not finite:
        return OnnxspectError(
            f"{subject.name}: its outputs are not finite numbers (NaN or infinity) for the images of {where}, with "
            + ("the given preprocessing" if given else "every usual preprocessing"),
            "the file is damaged, or was exported wrongly: run it on an image of your own in onnxruntime",
        )
    orders = [other_order(x.argmax(1), trial.labels, subject.classes, rng) for x in finite]
    order = max((o for o in orders if o is not None), key=lambda o: o.share, default=None)
    present = len(np.unique(trial.labels))
    if order is not None:  # consistent answers under other names
        subset = f" ({present} of the model's {subject.classes} classes are here)" if present < subject.classes else ""
        return OnnxspectError(
            f"{message}, but {order.share:.1%} of its answers follow the labels in another order: "
            f"{order.moved(trial.names)}{subset}",
            f"renumber the labels: {_state_order(order, trial, subject)}",
        )
    answers = found[best].argmax(1)
    commonest = int(np.bincount(answers).argmax())
    share = float((answers == commonest).mean())
    if share >= ONE_ANSWER:
        return OnnxspectError(
            f"{message}: it answers class {commonest} for {share:.0%} of the images, whatever they show",
            "the pixels are fed in another range: give its --scale/--mean/--std/--channel-order"
            if not given
            else "leave out --scale, --mean and --std, and the usual ones are tried",
        )
    if trial.ordered and (present < subject.classes or len(trial) < 2 * present):
        few = "" if present < subject.classes else "; one image a class is too few to find the order by"
        return OnnxspectError(
            f"{message}: {present} class names were counted in alphabetical order, and the model has {subject.classes} classes{few}",
            "say which of the model's classes they are: --classes FILE, the model's class names, one a line, in its order",
        )
    return OnnxspectError(
        f"{message}: its answers do not follow the labels in any order",
        "these are not the model's data, or it takes them otherwise: give its own data, or its --scale/--mean/--std/--channel-order",
    )


def answered(subject: Subject, samples: Samples, spec: InputSpec | None = None) -> np.ndarray:
    """Which samples are classified correctly ``(n,)``, with the given preprocessing or the best of the usual ones."""
    layout = subject.spec.layout
    options = [replace(spec, layout=layout)] if spec is not None else candidates(samples.shape[0], layout)
    found = _tried(subject, options, samples.images)
    choice = choose(found, samples.labels, _stated(subject, options, samples, given=spec is not None))
    right: np.ndarray = found[choice.index].argmax(1) == samples.labels
    return right
