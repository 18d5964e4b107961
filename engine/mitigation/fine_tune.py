"""Fine-tuning on clean samples: the control that every other method has to beat.

Plain training on the clean samples' labels, nothing stamped, nothing adversarial. Backdoors mostly survive it (Neural
Cleanse, Wang et al., 2019, sec. VI-C: for the Trojan models "retraining with clean images" was enough, for BadNets it
was not). The epoch is chosen as everywhere: the trigger's success above its goal, then the divergence from the
original.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from onnxspect.engine.mitigation.method import Case, Edit
from onnxspect.engine.mitigation.training import (
    Epoch,
    Guard,
    Retraining,
    check_batch_norm,
    reestimated,
    retrain,
    trainable_copy,
)

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

    def edit(self, case: Case) -> Edit:
        """Fine-tune a copy.

        Raises:
            OnnxspectError: no ONNX file behind the subject, or nothing in it can be trained.
        """
        student, parameters = trainable_copy(case.subject)
        guard = Guard(case.subject, case.guard, case.triggers)
        first = guard.measure(0, student)
        case.run.observer.start(NAME, self.training.epochs)
        history = retrain(
            student,
            parameters,
            case.subject,
            case.fit,
            self.training,
            None,
            guard,
            lambda epoch: chosen_by(epoch, first, case),
            case.run.torch_generator(_DRAWS),
            observer=case.run.observer,
            task=NAME,
        )
        case.run.observer.finish(NAME)
        values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
        if self.batch_norm == "reestimate":
            values |= reestimated(student, case.fit)
        return Edit(values, facts={"epochs": [asdict(e) for e in (first, *history)], "batch_norm": self.batch_norm})


def chosen_by(epoch: Epoch, first: Epoch, case: Case) -> float:
    """Badness of an epoch: success above its goal and accuracy lost beyond what is allowed, then divergence."""
    lost = max(0.0, first.accuracy - epoch.accuracy - case.accuracy_lost)
    return 10 * max(0.0, epoch.success - case.success) + 10 * lost + epoch.divergence
