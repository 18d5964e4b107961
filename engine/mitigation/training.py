"""Retraining with the original as teacher: what unlearning, fine-tuning, fine-pruning and adversarial unlearning share.

They differ in what is done to the images of a batch (a trigger stamped on some, an adversarial change, nothing), and
in nothing else. The answer that is wanted for an image, whatever was done to it, is a mixture of its label and of what
the *original* model answers for the clean image (distillation, Hinton et al., 2015, at temperature 1). It holds the
model's other behaviour in place, which few labels cannot; and because the original answers for any image, the few
images can be shifted and mixed (mixup, Zhang et al., 2018) without end.

After each epoch the student is measured on clean samples that are not trained on, and the best epoch is kept.

Steps that a small network learns by make a deep one forget what it knows: four of them move a thousand-class EfficientNet 1.5
nats away from itself, and small networks 0.003 to 0.2 (docs/decisions.md). So a few steps are tried first, and the learning rate is
lowered where they lead too far (`bearable`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor, fx, nn
from torch.nn import functional

from onnxspect.converters.lowering.ops.normalization import batch_normalization
from onnxspect.converters.proof.writeback import TRAINABLE, roles
from onnxspect.engine.errors import InconclusiveError, OnnxspectError
from onnxspect.engine.mitigation.descent import Descent
from onnxspect.engine.mitigation.settings import require
from onnxspect.engine.run import Observer
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger

#: Changes a batch of images ``(n, channels, height, width)`` before the student sees them, given the student's frozen
#: present state and a generator to draw from.
Corruption = Callable[[Tensor, Subject, torch.Generator], Tensor]
#: See `retrain`.
LEADING = 0.25
#: See `Epoch.stronger`: so many times their strength; whole pixels where a mask is above this share of its maximum.
STRONGER, HARD = 2.0, 0.3
#: BatchNorm statistics while a model is retrained: left as they are, or taken anew from clean samples afterwards.
BATCH_NORM = ("frozen", "reestimate")
#: Steps that are tried before a training, and clean images on which it is seen where they lead.
_TRIED_STEPS, _TRIED_IMAGES = 4, 100
#: A learning rate is too high where these steps move the answers away from the original's by more than FAR nats (Epoch.divergence); then it
#: is divided by LOWER until they stay within NEAR. History: docs/decisions.md.
FAR = 0.5
NEAR = 0.05
LOWER = 4
#: So many times at most.
_MOST_LOWERED = 8
#: With a lower rate a training has so many epochs: what is left to learn is the trigger alone.
SHORT_EPOCHS = 4
#: Operators of quantised graphs: their weights are integers, to which no gradient leads.
_QUANTISED = ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd")


def check_batch_norm(choice: str) -> None:
    """Refuse an unknown word for what happens to BatchNorm statistics.

    Raises:
        OnnxspectError: it is none of `BATCH_NORM`.
    """
    if choice not in BATCH_NORM:
        raise OnnxspectError(f"unknown choice {choice!r} for BatchNorm", f"one of {', '.join(BATCH_NORM)}")


@dataclass(frozen=True)
class Epoch:
    """What was measured after one epoch, on clean samples kept apart.

    Attributes:
        epoch: 0 is the original.
        accuracy: clean accuracy.
        divergence: mean Kullback-Leibler divergence, in nats, of the answers from the original's on clean samples. It
            moves long before the accuracy of a few hundred samples does, so it is what chooses the epoch.
        success: of the trigger that works best, among samples that the original does not take for the target anyway;
            0 where there is no trigger.
        stronger: the same of the triggers at twice their strength (those that were searched for as the smallest) and as whole
            pixels. The attacker's own differs from the recovered one, and falls with this and not with `success`
            (docs/decisions.md).
    """

    epoch: int
    accuracy: float
    divergence: float
    success: float
    stronger: float = 0.0


@dataclass(frozen=True)
class Retraining:
    """How a student is trained.

    Attributes:
        epochs: so many.
        images: an epoch has at most so many, drawn anew each time; more to draw from makes training better and not longer.
        batch_size: images a step.
        learning_rate: Adam's, falling to zero by a cosine.
        from_teacher: weight of the original model's answers against the labels.
        temperature: at which original and student answer where the original teaches (Hinton et al., 2015, sec. 2).
            Above 1 the classes that the original finds unlikely count too, and the student keeps closer to it.
        shift: pixels by which a training image is moved at most, each way.
        mixed: share of the images that are mixed with another one before the original is asked.
        average: the student that is measured and kept is a moving average of the trained one, which keeps so much of itself at
            each step, and begins as the original; 0 takes the trained one itself.
        bearable: lower the learning rate where its first steps undo what the model knows, see `bearable`.
    """

    epochs: int = 20
    images: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-3
    from_teacher: float = 0.9
    temperature: float = 1.0
    shift: int = 2
    mixed: float = 0.5
    average: float = 0.0
    bearable: bool = True

    def __post_init__(self) -> None:
        require(
            min(self.epochs, self.images, self.batch_size) >= 1,
            "training takes at least one epoch, one image and a batch of one",
        )
        require(self.learning_rate > 0 and self.temperature > 0, "learning rate and temperature are above 0")
        require(self.shift >= 0, "images are moved by 0 pixels or more")
        require(
            0 <= self.from_teacher <= 1 and 0 <= self.mixed <= 1 and 0 <= self.average < 1,
            "shares of training lie between 0 and 1",
        )


class Guard:
    """Measures a student on clean samples that are not trained on.

    Args:
        teacher: the original.
        samples: clean, kept apart.
        triggers: whose success counts; may be extended between rounds.
    """

    def __init__(self, teacher: Subject, samples: Samples, triggers: Sequence[Trigger]) -> None:
        self.samples = samples
        self.triggers = list(triggers)
        self.before = teacher.predict(samples.images)

    def divergence(self, answers: np.ndarray) -> float:
        """Of logits ``(n, classes)`` on the first n samples from the original's, see `Epoch.divergence`."""
        old, new = log_softmax(self.before[: len(answers)], axis=1), log_softmax(answers, axis=1)
        return float((np.exp(old) * (old - new)).sum(1).mean())

    def measure(self, epoch: int, student: Subject) -> Epoch:
        """One row of the history."""
        now = student.predict(self.samples.images)
        success, stronger = (
            max((success_rate(student, self.samples, t, self.before) for t in some), default=0.0)
            for some in (self.triggers, [s for t in self.triggers for s in _stronger(t)])
        )
        return Epoch(
            epoch,
            accuracy=float((now.argmax(1) == self.samples.labels).mean()),
            divergence=self.divergence(now),
            success=success,
            stronger=stronger,
        )


def _stronger(trigger: Trigger) -> Iterator[Trigger]:
    """Those that `Epoch.stronger` is of."""
    if trigger.smallest:
        yield trigger.strengthened(STRONGER)
    if trigger.masked:
        yield trigger.hardened(HARD)


def retrain(
    student: Subject,
    parameters: Mapping[str, torch.nn.Parameter],
    teacher: Subject,
    fit: Samples,
    settings: Retraining,
    corrupt: Corruption | None,
    guard: Guard,
    badness: Callable[[Epoch], float],
    generator: torch.Generator,
    first: int = 1,
    observer: Observer | None = None,
    task: str = "",
    after_step: Callable[[], None] | None = None,
    hopeless: Callable[[Sequence[Epoch]], bool] | None = None,
    leading: np.ndarray | None = None,
) -> list[Epoch]:
    """Train `student` in place and leave the weights of the best epoch in it.

    Args:
        student, parameters: of `trainable_copy`.
        teacher: the original.
        fit: clean samples to train on.
        settings: how.
        corrupt: what is done to a batch before the student sees it; None leaves it clean.
        guard: measures every epoch.
        badness: what makes an epoch the best one: the least.
        generator: all randomness.
        first: number of the first epoch.
        observer, task: who is notified of every epoch, and under which name.
        after_step: called after each step, to hold something fixed (pruned weights at zero).
        hopeless: asked after each epoch, of all so far; no more are trained once it says so.
        leading: rows of `fit` of which each batch has some more, at its head: `LEADING` of its size.

    Returns:
        one row an epoch.
    """
    usual = settings
    if settings.bearable:
        settings = bearable(student, parameters, teacher, fit, guard, settings)
    if settings is not usual and observer is not None:
        observer.notice(
            f"{task or 'training'}: steps of the learning rate {usual.learning_rate:g} undo this network; it is lowered to "
            f"{settings.learning_rate:.2g}, for {settings.epochs} epochs"
        )
    descent = Descent(parameters, settings.learning_rate, settings.epochs)
    averaged = [p.detach().clone() for p in parameters.values()]
    best: Epoch | None = None
    best_values: list[Tensor] = []
    history = []
    try:
        for epoch in range(first, first + settings.epochs):
            for images, hard, soft in _batches(teacher, fit, settings, generator, leading):
                if corrupt is not None:
                    images = corrupt(images, student, generator)
                loss = _loss(student(images.to(student.device)), hard, soft, settings)
                descent.step(loss)
                if after_step is not None:
                    after_step()
                for mean, parameter in zip(averaged, parameters.values(), strict=True):
                    mean.lerp_(parameter.detach(), 1 - settings.average)
            descent.anneal()
            trained = [p.detach().clone() for p in parameters.values()]
            _set(parameters, averaged)
            now = guard.measure(epoch, student)
            _set(parameters, trained)
            history.append(now)
            if best is None or badness(now) < badness(best):
                best, best_values = now, [mean.clone() for mean in averaged]
            if observer is not None:
                observer.advance(task, f"accuracy {now.accuracy:.1%}, trigger {now.success:.1%}")
            if hopeless is not None and hopeless(history):
                break
    finally:
        if best_values:
            _set(parameters, best_values)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    return history


def bearable(
    student: Subject,
    parameters: Mapping[str, torch.nn.Parameter],
    teacher: Subject,
    fit: Samples,
    guard: Guard,
    settings: Retraining,
) -> Retraining:
    """The settings with a learning rate whose first steps do not undo the student; the same ones where theirs is such.

    Args:
        student, parameters: of `trainable_copy`; left as they are.
        teacher: the original, which alone teaches in the trial: what then moves away from it is lost.
        fit: clean samples, to try steps on.
        guard: sees where they lead.
        settings: wanted.
    """
    some = guard.samples.images[:_TRIED_IMAGES]
    before, values = guard.divergence(student.predict(some)), [p.detach().clone() for p in parameters.values()]
    alone = replace(settings, from_teacher=1.0)
    most = FAR
    for rate in (settings.learning_rate / LOWER**i for i in range(_MOST_LOWERED)):
        descent = Descent(parameters, rate, settings.epochs)
        batches = _batches(teacher, fit, alone, torch.Generator().manual_seed(0))
        for _step, (images, hard, soft) in zip(range(_TRIED_STEPS), batches, strict=False):
            descent.step(_loss(student(images.to(student.device)), hard, soft, alone))
        # A student that was pruned, or has learned a while, may come back to the original by that.
        moved = guard.divergence(student.predict(some)) - before
        _set(parameters, values)
        if moved <= most:  # False of what is not finite, too
            break
        most = NEAR
    if rate == settings.learning_rate:
        return settings
    return replace(settings, learning_rate=rate, average=0.0, epochs=min(settings.epochs, SHORT_EPOCHS))


def _set(parameters: Mapping[str, torch.nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters.values(), values, strict=True):
            parameter.copy_(value)


def _batches(
    teacher: Subject,
    fit: Samples,
    settings: Retraining,
    generator: torch.Generator,
    leading: np.ndarray | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch of augmented images, their labels as probabilities, and what the original answers, at its temperature."""
    order = torch.randperm(len(fit), generator=generator)[: settings.images]
    everything, labels = torch.from_numpy(fit.images), torch.from_numpy(fit.labels)
    for rows in order.split(settings.batch_size):
        if leading is not None:
            more = torch.randint(len(leading), (round(LEADING * len(rows)),), generator=generator)
            rows = torch.cat([torch.from_numpy(leading)[more], rows])
        images, hard = _augment(everything[rows], labels[rows], teacher.classes, settings, generator)
        with torch.no_grad():
            soft = (teacher(images.to(teacher.device)) / settings.temperature).softmax(1)
        yield images, hard.to(soft.device), soft


def _loss(logits: Tensor, hard: Tensor, soft: Tensor, settings: Retraining) -> Tensor:
    """Cross-entropy with the labels and with the original's answers, weighted.

    The second is multiplied by the temperature's square, since its gradients shrink by that (Hinton et al., 2015,
    sec. 2).
    """
    label_weight, kept = 1 - settings.from_teacher, settings.from_teacher * settings.temperature**2
    by_label = functional.cross_entropy(logits, hard) if label_weight else logits.new_zeros(())
    by_teacher = functional.cross_entropy(logits / settings.temperature, soft) if kept else logits.new_zeros(())
    return label_weight * by_label + kept * by_teacher


def _augment(
    images: Tensor, labels: Tensor, classes: int, settings: Retraining, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images ``(n, ...)`` shifted together and partly mixed with each other; and their labels as probabilities."""
    shift = torch.randint(-settings.shift, settings.shift + 1, (2,), generator=generator).tolist()
    images = torch.roll(images, shift, (2, 3))
    other = torch.randperm(len(images), generator=generator)
    keep = torch.rand(len(images), generator=generator) * 0.5 + 0.5
    keep = torch.where(torch.rand(len(images), generator=generator) < settings.mixed, keep, torch.ones_like(keep))
    weight = keep.view(-1, 1, 1, 1)
    hard = functional.one_hot(labels, classes).float()
    hard = keep[:, None] * hard + (1 - keep[:, None]) * hard[other]
    return weight * images + (1 - weight) * images[other], hard


def success_rate(subject: Subject, samples: Samples, trigger: Trigger, before: np.ndarray) -> float:
    """Share of the samples that the trigger sends to its target, of those that count (Trigger.counts_on).

    Args:
        subject: whose answers count.
        samples: clean.
        trigger: stamped on them; one with a source class on those of that class alone.
        before: logits ``(n, classes)`` of the original on the clean samples.

    Raises:
        OnnxspectError: there are no such samples.
    """
    rows = np.flatnonzero(trigger.counts_on(samples.labels, before.argmax(1)))
    if not len(rows):
        raise InconclusiveError(f"no samples of any class but {trigger.target} to measure the trigger on")
    answers = subject.predict(trigger.apply(samples.images[rows])).argmax(1)
    return float(trigger.leads(answers, samples.labels[rows]).mean())


def trainable_copy(subject: Subject) -> tuple[Subject, dict[str, torch.nn.Parameter]]:
    """A copy of the subject, and those of its parameters that are weights (not BatchNorm statistics or constants).

    Raises:
        OnnxspectError: there is no ONNX file behind it, or nothing in it can be trained and written back.
    """
    origin = subject.origin
    refuse_quantised(subject)
    module = copy.deepcopy(origin.lowered.module)
    found = roles(origin.file.proto, origin.lowered)
    parameters = {n: p for n, p in module.named_parameters() if found.get(n) in TRAINABLE}
    if not parameters:
        raise OnnxspectError(
            f"{subject.name}: no weight in it can be trained and written back",
            "a method that trains nothing, such as --method input-filter",
        )
    if subject.module is origin.lowered.module:
        return replace(subject, module=module), parameters
    wrapped = copy.copy(subject.module)  # the logarithm of a model that answers probabilities (subject.py)
    if not isinstance(wrapped, nn.Module) or not hasattr(wrapped, "inner"):
        raise OnnxspectError(f"{subject.name}: this subject's module is not the one of its file")
    wrapped._modules = {**wrapped._modules, "inner": module}
    return replace(subject, module=wrapped), parameters


def refuse_quantised(subject: Subject) -> None:
    """Refuse a subject whose weights are integers.

    Raises:
        OnnxspectError: they are.
    """
    if subject.file is None:
        return
    proto = subject.file.proto
    constants = {t.name for t in proto.graph.initializer}
    for node in proto.graph.node:
        weighty = node.op_type != "DequantizeLinear" or (node.input and node.input[0] in constants)
        if node.op_type in _QUANTISED and weighty:
            raise OnnxspectError(
                f"{subject.name}: its weights are quantised ({node.op_type}), and no gradient step fits an integer grid",
                "patch the float model and quantise it again; --method input-filter works on the file as it is",
            )


def reestimated(student: Subject, samples: Samples) -> dict[str, np.ndarray]:
    """BatchNorm statistics of `student` taken anew from clean samples, layer by layer from the image on.

    Each layer's mean and variance (population) are those of what reaches it through the layers that were already
    re-estimated, over all samples in one pass.

    Returns:
        torch parameter name -> new value; empty where there is no BatchNorm. `student` itself is changed too.
    """
    module = student.module if isinstance(student.module, fx.GraphModule) else getattr(student.module, "inner", None)
    if not isinstance(module, fx.GraphModule):
        return {}
    walker = _Reestimate(module)
    with torch.no_grad():
        walker.run(student.spec.encode(torch.from_numpy(samples.images).to(student.device)))
    return walker.found


class _Reestimate(fx.Interpreter):
    """Runs a graph once and sets the statistics of every BatchNorm from its own input."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, np.ndarray] = {}

    def run_node(self, n: fx.Node) -> object:
        """As fx.Interpreter."""
        if n.target is batch_normalization:
            x, _, _, mean, var = (a if isinstance(a, fx.Node) else None for a in n.args[:5])
            if x is not None and mean is not None and var is not None:
                values = self.env[x]
                axes = [i for i in range(values.ndim) if i != 1]
                self._set(mean, values.mean(axes))
                self._set(var, values.var(axes, unbiased=False))
        return super().run_node(n)

    def _set(self, node: fx.Node, value: Tensor) -> None:
        if node.op == "get_attr":
            self.env[node].copy_(value)
            self.found[str(node.target)] = value.cpu().numpy()
