"""Fine-tuning on clean samples: the control that every other method has to beat.

Plain training on the clean samples' labels, nothing stamped, nothing adversarial. Backdoors mostly survive it (Neural
Cleanse, Wang et al., 2019, sec. VI-C: for the Trojan models "retraining with clean images" was enough, for BadNets it
was not). The epoch is chosen as everywhere: the trigger's success above its goal, then the divergence from the
original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import nn

from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.training import (
    Corruption,
    Epoch,
    Guard,
    Retraining,
    check_batch_norm,
    reestimated,
    retrain,
    trainable_copy,
)
from onnxspect.engine.subject.subject import Subject

NAME = "fine-tune"
#: Keys the draws of its training. It was the name until the command line had one style, and a key stays, so that the bits do.
_DRAWS = "fine_tune"


@dataclass(frozen=True)
class FineTune:
    """The method's settings.

    Attributes:
        training: labels alone, no teacher: the teacher is the infected model.
        batch_norm: "frozen", or "reestimate" from the clean samples at the end.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    mends: ClassVar[bool] = True
    training: Retraining = field(default_factory=lambda: Retraining(epochs=20, from_teacher=0.0))
    batch_norm: str = "frozen"

    def __post_init__(self) -> None:
        check_batch_norm(self.batch_norm)

    def edit(self, given: PatchInput) -> Edit:
        """Fine-tune a copy.

        Raises:
            OnnxspectError: no ONNX file behind the subject, or nothing in it can be trained.
        """
        student, parameters = trainable_copy(given.subject)
        epochs = fine_tuned(given, student, parameters, self.training, NAME, _DRAWS)
        values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
        if self.batch_norm == "reestimate":
            values |= reestimated(student, given.fit)
        return Edit(values, facts={"epochs": epochs, "batch_norm": self.batch_norm})


def fine_tuned(
    given: PatchInput,
    student: Subject,
    parameters: Mapping[str, nn.Parameter],
    training: Retraining,
    name: str,
    draws: str,
    corrupt: Corruption | None = None,
    after_step: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a copy of the subject on `given.fit` and keep its best epoch; what each epoch measured, the original's first.

    Args:
        given: the original, its triggers and clean samples.
        student, parameters: as `trainable_copy` made them; changed in place.
        training: how.
        name: under which progress is shown.
        draws: keys the draws.
        corrupt, after_step: as for `retrain`.
    """
    guard = Guard(given.subject, given.guard, given.triggers)
    first = guard.measure(0, given.subject)
    given.run.observer.start(name, training.epochs)
    history = retrain(
        student,
        parameters,
        given.subject,
        given.fit,
        training,
        corrupt,
        guard,
        lambda epoch: chosen_by(epoch, first, given),
        given.run.torch_generator(draws),
        observer=given.run.observer,
        task=name,
        after_step=after_step,
    )
    given.run.observer.finish(name)
    return [asdict(epoch) for epoch in (first, *history)]


def chosen_by(epoch: Epoch, first: Epoch, given: PatchInput) -> float:
    """Badness of an epoch: success above its goal and accuracy lost beyond what is allowed, then divergence."""
    lost = max(0.0, first.accuracy - epoch.accuracy - given.accuracy_lost)
    return 10 * max(0.0, epoch.success - given.success) + 10 * lost + epoch.divergence
